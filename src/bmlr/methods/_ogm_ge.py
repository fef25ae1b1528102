"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bmlr._checks import check_choice, check_integer, check_non_negative
from bmlr.methods._modulation import (
    SCOPES,
    ScoredMethod,
    batch_scores,
    encoder_gradients,
    lead,
    mean_of_others,
    scale_gradients,
)
from bmlr.methods._support import SteppedMethod, WindowedMethod
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo, Remedy
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Regression, Task


class OGMGE(SteppedMethod, WindowedMethod, ScoredMethod):
    r"""On-the-fly Gradient Modulation with Generalisation Enhancement (Peng et al., 2022).

    Joint training whose encoder gradients are scaled down where a modality is ahead, with noise added to all of them:

    .. math::
        s_u = \sum_i \mathrm{softmax}(\ell^u_i)_{y_i}, \quad
        \rho_u = s_u / \bar s_{v \ne u}, \quad
        k_u = \begin{cases} 1 - \tanh(\alpha \rho_u) & \rho_u > 1 \\ 1 & \text{otherwise} \end{cases}, \quad
        g \leftarrow k_u\, g + \epsilon

    for each gradient tensor g of encoder u (Eqs. 9 to 12), with ε normal of the standard deviation that g had before
    it was scaled, plus 1e-8. The scores s are sums over all samples of an optimiser step, over accumulated batches and
    processes, so that accumulation changes nothing. k drops from 1 to 1 − tanh α as ρ passes 1, as published.

    Choices and deviations:

    * The official code scales 4-D gradients, which a Transformer has none of, and waits for the GPU once per
      parameter. Here ``scope`` selects the gradients, and the step waits for no device.
    * With more than two modalities ρ compares with the mean score of the others, or, as BalanceBenchmark does, with
      the smallest. The paper has two.
    * The noise is drawn from a generator seeded by ``seed``, the run's seed and the number of the step: the same on
      every process, and after a resume.
    * Where the scores are equal the official code scales audio by 1 − tanh α; here, as in Eq. 10, nothing is scaled. A
      convolution of a single number gets NaN noise there, 1e-8 here.
    * The journal's version (Wei et al., TPAMI 2024) modulates only from epoch 6: ``first_epoch = 6``.
    * The unimodal logits are the fusion's own readout; the official code's concatenation has the same b/2, and its
      FiLM and gated fusions do not run with this method.

    For labels and numbers the loss is that of the task. With several labels s sums the mean probability of what is true
    of a sample's labels (ours). For numbers it is the squared error, and :math:`\rho_u = \bar s_{v \ne u} / s_u`, the
    errors in place of the confidences, as MLB (Kontras et al., 2024) has it for regression.

    The paper trains with SGD (1e-3, momentum 0.9, weight decay 1e-4, times 0.1 after 70 epochs) for 100 epochs and
    modulates in epochs 0 to 50, which are 51; it searches α in 0.1 to 0.8.

    Args:
        alpha: Strength α ≥ 0; 0 scales nothing.
        noise: Add the noise (GE). Without it this is OGM.
        scope: Gradients of the encoders to scale: ``weight`` (two or more dimensions), ``conv`` (four dimensions, as
            the official code) or ``all``.
        reference: What a score is compared with: the ``mean`` of the others, or the ``min``, the worst one.
        first_epoch: First epoch in which gradients are modulated.
        last_epoch: Last such epoch; None is no end. With 50 there are 51, as in the official code.
        seed: Seed of the noise, beside the run's.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.OGMGE(alpha=0.5)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model))
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> method.backward(losses, model)
        >>> method.adjust_gradients(model)
        >>> sorted(losses.logs)
        ['score_a', 'score_v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Balanced Multimodal Learning via On-the-fly Gradient Modulation",
        venue="CVPR 2022",
        url="https://arxiv.org/abs/2203.15332",
        family="gradient scale",
        cost="1 forward, 1 backward, 1 pass over the gradients",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    needs_separate_encoders: ClassVar[bool] = True
    epoch_parameters: ClassVar[tuple[str, ...]] = ("last_epoch",)
    remedy: ClassVar[Remedy | None] = Remedy(
        "encoder", "scales down the gradient of the modality that is ahead", rank=1
    )
    conformance: ClassVar[Conformance] = Conformance(sorted_names=True)

    def __init__(
        self,
        alpha: float = 0.3,
        noise: bool = True,
        scope: Literal["weight", "conv", "all"] = "weight",
        reference: Literal["mean", "min"] = "mean",
        first_epoch: int = 0,
        last_epoch: int | None = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.alpha = check_non_negative("alpha", alpha)
        self.noise = bool(noise)
        self.scope = check_choice("scope", scope, tuple(SCOPES))
        self.reference = check_choice("reference", reference, ("mean", "min"))
        self.set_window(first_epoch, last_epoch)
        self.seed = check_integer("seed", seed, 0)

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The multimodal loss; training also adds up the scores."""
        terms = {"fused": output.task.loss(output.logits, targets)}
        if not (self.training and self.is_acting):
            return Losses(terms)
        scores = batch_scores(output, targets)
        self.add_sums(scores)
        names = sorted(output.features)
        return Losses(terms, {f"score_{u}": s / len(targets) for u, s in zip(names, scores, strict=True)})

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Scale the encoders' gradients by k and add the noise."""
        if (scores := self.take_sums()) is None:
            return
        coefficients = self.coefficients(scores, model.task)
        generator_on = self.generators(self.step)
        for name, coefficient in zip(sorted(model.encoders), coefficients, strict=True):
            gradients = encoder_gradients(model.encoders[name], self.scope)
            noise = [_draw(g, generator_on(g.device)) for g in gradients] if self.noise else []
            scale_gradients(gradients, coefficient)
            if noise:
                torch._foreach_add_(gradients, noise)
        self.step += 1

    def coefficients(self, scores: Tensor, task: Task) -> Tensor:
        """Coefficients k, shape (M,), from the scores of a task, shape (M,) (Eqs. 9, 10)."""
        is_other = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        rows = scores.expand(len(scores), -1)
        if self.reference == "mean":
            compared = mean_of_others(scores)
        elif isinstance(task, Regression):
            compared = rows.masked_fill(~is_other, 0.0).amax(1)
        else:
            compared = rows.masked_fill(~is_other, torch.inf).amin(1)
        ratios = lead(scores, compared, task)
        return torch.where(ratios > 1, 1 - torch.tanh(self.alpha * ratios), 1.0)


def _draw(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Noise with the standard deviation of a gradient."""
    normal = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
    # The std of a single number is NaN, which would end the training.
    std = gradient.std() if gradient.numel() > 1 else gradient.new_zeros(())
    return normal * (std + 1e-8)
