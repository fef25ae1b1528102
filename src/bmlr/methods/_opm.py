"""OPM: on-the-fly prediction modulation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bmlr._checks import check_integer, check_non_negative, check_unit_interval
from bmlr.encoders.features import masked_features
from bmlr.methods._modulation import batch_scores, lead, mean_of_others
from bmlr.methods._support import SteppedMethod, all_reduce_mean, all_reduce_sum, draw_per_sample, presence
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo, Remedy
from bmlr.model import Output
from bmlr.tasks import Task


class OPM(SteppedMethod):
    r"""On-the-fly Prediction Modulation (Wei et al., 2024).

    Features of the leading modality are dropped.

    With the scores :math:`s_u = \sum_i \mathrm{softmax}(\ell^u_i)_{y_i}` of the batch and the mean score of the other
    modalities :math:`\bar s`,

    .. math::
        \rho_u = \tanh(\mathrm{relu}(s_u / \bar s - 1)), \qquad
        q_u = \begin{cases} \mathrm{clip}(q\,(1 + \lambda \rho_u), 0, 1) & \rho_u > 0 \\
        0 & \text{otherwise} \end{cases}

    is the probability with which each sample loses its features of u. All features are then divided by
    :math:`1 - \theta + 10^{-5}`, with θ the mean of the q weighted by the feature widths, and the loss is the
    multimodal cross-entropy of the samples that kept at least one modality. A batch is treated so with probability
    ``probability``, after ``warmup`` epochs.

    With two modalities only the one ahead is dropped, so that a sample that has both keeps one. With more, of which the
    paper and the official code have none, or where modalities are absent, a sample may lose all it has and does not
    count in the mean. A batch that lost all has the loss zero and zero gradients, by which an optimiser with momentum
    still moves. Draws come from a generator seeded by
    ``seed``, the run's seed and the number of the step, in the order of the sorted names, so that a resumed run draws
    the same.

    The official code has q = 0.5, λ = 0.5 and probability 0.7 with six epochs of warm-up (0 to 5); BalanceBenchmark has
    q = 0.4. With more than two modalities s_u is compared with the mean of the others.

    The official code trains something else than the formula. The division by 1 − θ has a backward pass written by hand
    that gives θ itself as its gradient, and θ depends on the encoders, so that ½θ² is minimised beside the loss, which
    pushes the score of the leading modality down: by 2 to 5 % of an encoder's gradient at the start, more later. Here θ
    is a constant, as in BalanceBenchmark, whose 1e-5 this takes.

    For labels and numbers the loss is that of the task. With several labels s sums the mean probability of what is true
    of a sample's labels. For numbers it is the squared error, and the ratio is :math:`\bar s / s_u`. Both are
    extensions of ours, the second after MLB (Kontras et al., 2024).

    Args:
        rate: Base rate q in [0, 1].
        strength: Strength λ ≥ 0 by which the rate grows with the lead.
        probability: Probability in [0, 1] that a batch is treated.
        warmup: Number of epochs without treatment; 6 are the official epochs 0 to 5.
        seed: Seed of the draws, beside the run's.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.OPM(warmup=0, probability=1.0)
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> sorted(losses.logs)
        ['drop_a', 'drop_v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="On-the-fly Modulation for Balanced Multimodal Learning",
        venue="TPAMI 2024",
        url="https://arxiv.org/abs/2410.11582",
        family="data and alternation",
        cost="1 forward, 1 backward, 1 more fusion forward",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    epoch_parameters: ClassVar[tuple[str, ...]] = ("warmup",)
    remedy: ClassVar[Remedy | None] = Remedy("decision", "drops features of the modality that is ahead", rank=3)
    graph_reason: ClassVar[str] = "decides by a draw on the host whether a step drops features"
    conformance: ClassVar[Conformance] = Conformance(
        short={"warmup": 0, "probability": 1.0},
        alters_features="drops features of the modality that is ahead",
        not_mean_over_samples="draws what to drop by the sample's place in its batch, at rates of the batch's scores",
        sorted_names=True,
        reads_host="draws there whether it treats the batch",
    )

    def __init__(
        self, rate: float = 0.5, strength: float = 0.5, probability: float = 0.7, warmup: int = 6, seed: int = 0
    ) -> None:
        super().__init__()
        self.rate = check_unit_interval("rate", rate)
        self.strength = check_non_negative("strength", strength)
        self.probability = check_unit_interval("probability", probability)
        self.warmup = check_integer("warmup", warmup, 0)
        self.seed = check_integer("seed", seed, 0)

    @property
    def follows_epochs(self) -> bool:
        """With a warm-up."""
        return self.warmup > 0

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss; in training after the drop."""
        if not self.training or self.epoch < self.warmup:
            return Losses({"fused": output.task.loss(output.logits, targets)})
        generator = self.generator(self.step)
        self.step += 1
        if float(torch.rand((), generator=generator, dtype=torch.float32)) >= self.probability:
            return Losses({"fused": output.task.loss(output.logits, targets)})
        names = sorted(output.features)
        rates = self.drop_rates(all_reduce_sum(batch_scores(output, targets)), output.task)
        draws = draw_per_sample(output.batch_size, len(names), generator).to(rates.device, non_blocking=True)
        keep = draws.to(rates.dtype) >= rates
        widths = [output.features[u].shape[-1] for u in names]
        theta = torch.stack([width * rate for width, rate in zip(widths, rates, strict=True)]).sum() / sum(widths)
        features = {}
        for u, column in zip(names, keep.unbind(1), strict=True):
            z = output.features[u]
            features[u] = masked_features(z, column) / (1 - theta + 1e-5).to(z.dtype)
        remaining = output.replace_features({u: features[u] for u in output.features})
        has_any = (keep & presence(output, names)).any(1)
        logs = {f"drop_{u}": rate for u, rate in zip(names, rates, strict=True)}
        fused = output.task.loss(remaining.logits, targets, has_any)
        # The trainer averages over processes; without this weight a process with few samples left would count as much
        # as one with many.
        count = has_any.sum().to(fused.dtype)
        weight = count / all_reduce_mean(count).clamp(min=torch.finfo(fused.dtype).tiny)
        return Losses({"fused": fused * weight}, logs)

    def drop_rates(self, scores: Tensor, task: Task) -> Tensor:
        """Rate q of each modality, shape (M,), from the scores of a task, shape (M,)."""
        advantage = torch.tanh(torch.relu(lead(scores, mean_of_others(scores), task) - 1))
        return torch.where(advantage > 0, (self.rate * (1 + self.strength * advantage)).clamp(0, 1), 0.0)
