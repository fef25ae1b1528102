"""Greedy: balanced learning by conditional learning speeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from bmlr._checks import check_integer, check_non_negative
from bmlr.encoders.features import pooled
from bmlr.functional import widened
from bmlr.fusion import MMTMFusion, match_dtype
from bmlr.methods._base import Method
from bmlr.methods._modulation import mean_of_others
from bmlr.methods._support import all_reduce_sum, joint_norm, presence
from bmlr.methods._types import ALL_TASKS, Conformance, Losses, MethodInfo, Prediction
from bmlr.model import MultimodalClassifier, Output


class Greedy(Method):
    r"""Balanced multimodal learning against greedy training (Wu et al., 2022).

    The modalities exchange by the gates of :class:`bmlr.fusion.MMTMFusion`, an exchange of the method's own, and each
    has a head, whose logits :math:`\ell_u` are averaged for predictions: :math:`L = \sum_u L(y, \ell_u)`. A modality
    learns by its main path (encoder and head) and by its bypass (its excitation and the common squeeze). The
    conditional learning speed compares both over all steps so far,

    .. math::
        \mu_u = \sum_t \frac{\lVert g_t \rVert^2}{\lVert w_t \rVert^2}, \qquad
        b_u = \log_{10} \frac{\mu_u^{\text{bypass}}}{\mu_u^{\text{main}}}, \qquad
        d_u = b_u - \bar b_{v \ne u} ,

    with the gradients g and weights w of each path. From ``first_epoch`` on, where the largest d exceeds ε, a window of
    steps follows in which the gates of that modality are replaced by their running mean: what it hears from the others
    says nothing about the sample, and it has to learn by its main path. Within a window speeds are not counted.

    Deviations:

    * The paper's exchange sits at three convolutional layers of two ResNets; here it acts once, on the features, so
      that any encoder can be trained. The fusion of the model is not trained; Joint with ``fusion="mmtm"`` is the same
      network with one loss.
    * The paper has two modalities, where the largest d is the absolute difference; more are ours.
    * In the official code the running mean of the second modality's gates takes in those of the *first*, which also
      makes it fail where widths differ; it goes on during evaluation; and a path without a gradient ends the training.
      Here each has its own mean, over the samples of training that have the modality, and paths without gradient count
      as zero.
    * A sample that lacks a modality has no loss by its head, and no share of it in the prediction.

    Nothing waits for the device: the window is a tensor. The official recipe is SGD with 0.1, batches of 8, no
    momentum, the rate times 0.3 after ten epochs without gain, at most 300 epochs, ε = 0.01 (0.001 in
    BalanceBenchmark).

    Args:
        epsilon: Threshold ε ≥ 0 of the lead in speed.
        window: Number of steps of a window.
        first_epoch: First epoch in which windows open.
        ratio: Reduction of the squeeze.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> generator = torch.manual_seed(0)
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.Greedy()
        >>> method.setup(model)
        >>> plan = method.start_epoch(bmlr.methods.EpochContext(epoch=1, max_epochs=10, model=model))
        >>> losses = method(model({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}), torch.tensor([0, 2]))
        >>> method.backward(losses, model)
        >>> method.adjust_gradients(model)
        >>> int(method.remaining)
        5
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep Neural Networks",
        venue="ICML 2022",
        url="https://arxiv.org/abs/2202.05306",
        family="architecture and heads",
        cost="1 forward, 1 backward, 1 pass over gradients and weights",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    leaves_gradients_unset: ClassVar[bool] = True  # the fusion is not trained
    conformance: ClassVar[Conformance] = Conformance(
        short={"epsilon": 0.0, "window": 1, "first_epoch": 0}, sorted_names=True
    )

    speeds: Tensor
    remaining: Tensor
    leader: Tensor
    mean_gates: Tensor
    counts: Tensor

    def __init__(self, epsilon: float = 0.01, window: int = 5, first_epoch: int = 1, ratio: int = 4) -> None:
        super().__init__()
        self.epsilon = check_non_negative("epsilon", epsilon)
        self.window = check_integer("window", window, 1)
        self.first_epoch = check_integer("first_epoch", first_epoch, 0)
        self.ratio = check_integer("ratio", ratio, 1)
        self.exchange: MMTMFusion | None = None
        self.register_buffer("speeds", torch.zeros(2, 0))  # of main path and bypass, by sorted name
        self.register_buffer("remaining", torch.zeros((), dtype=torch.long))  # steps of the open window
        self.register_buffer("leader", torch.zeros((), dtype=torch.long))  # whose gates it replaces
        self.register_buffer("mean_gates", torch.zeros(0))
        self.register_buffer("counts", torch.zeros(0))

    def setup(self, model: MultimodalClassifier) -> None:
        """Make the exchange; speeds and running means start over."""
        super().setup(model)
        like = next(model.parameters())
        dims = dict(sorted(model.fusion.feature_dims.items()))
        self.exchange = MMTMFusion(dims, model.task.num_outputs, ratio=self.ratio).to(like)
        count, device = len(dims), like.device
        precise = widened(like.detach().new_zeros(()))
        self.speeds = precise.new_zeros(2, count)
        self.remaining = torch.zeros((), dtype=torch.long, device=device)
        self.leader = torch.zeros((), dtype=torch.long, device=device)
        self.mean_gates = precise.new_zeros(sum(dims.values()))
        self.counts = precise.new_zeros(count)

    @property
    def follows_epochs(self) -> bool:
        """Whether windows open only later."""
        return self.first_epoch > 0

    @property
    def trains_fusion(self) -> bool:
        """The exchange is the method's own."""
        return False

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The sum of the heads' losses.

        Training also updates the running means of the gates.
        """
        exchange = self._exchange(output)
        features = self._features(output)
        gates = exchange.gates(features)
        if self.training:
            self._count_gates(output, gates)
            gates = self._replace_gates(gates)
        logits = exchange.branch_logits(features, gates)
        losses = {u: output.task.loss(values, targets, output.mask(u)) for u, values in logits.items()}
        logs = {f"loss_{u}": value.detach() for u, value in losses.items()}
        logs["rebalances"] = (self.remaining > 0).to(self.speeds.dtype)
        return Losses({"fused": torch.stack(list(losses.values())).sum()}, logs)

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Count the speeds of a step, and open or close windows.

        Gradients stay as they are.
        """
        exchange = self.exchange
        if exchange is None:
            return
        main = [[*model.encoders[u].parameters(), *exchange.heads[u].parameters()] for u in exchange.modalities]
        shared = list(exchange.squeeze.parameters())
        bypass = [[*exchange.excitations[u].parameters(), *shared] for u in exchange.modalities]
        paces = torch.stack([torch.stack([_pace(parameters) for parameters in path]) for path in (main, bypass)])
        is_open = self.remaining > 0
        self.speeds = self.speeds + torch.where(is_open, 0.0, paces.to(self.speeds.dtype))
        logarithms = self.speeds.clamp(min=torch.finfo(self.speeds.dtype).tiny).log10()
        ratios = logarithms[1] - logarithms[0]
        leads = ratios - mean_of_others(ratios)
        opens = ~is_open & (leads.max() > self.epsilon) & (self.epoch >= self.first_epoch)
        self.leader = torch.where(opens, leads.argmax(), self.leader)
        self.remaining = torch.where(opens, self.window, (self.remaining - 1).clamp(min=0))

    def predict(self, output: Output) -> Prediction:
        """Mean logits of the heads.

        Unimodal logits are those of a head with the other features zero.
        """
        exchange = self._exchange(output)
        features = self._features(output)
        logits = exchange.branch_logits(features, exchange.gates(features))
        weights = presence(output, exchange.modalities).to(next(iter(logits.values())).dtype)
        weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1.0)
        fused = (torch.stack(list(logits.values()), 1) * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        unimodal = {}
        for u in output.features:
            alone = {v: z if v == u else torch.zeros_like(z) for v, z in features.items()}
            unimodal[u] = exchange.branch_logits(alone, exchange.gates(alone))[u]
        return Prediction(fused, unimodal)

    def _exchange(self, output: Output) -> MMTMFusion:
        if self.exchange is None or set(self.exchange.modalities) != set(output.features):
            raise RuntimeError(
                "Greedy was not set up for this model: call `method.setup(model)` once, before the optimiser is made."
            )
        return self.exchange

    def _features(self, output: Output) -> dict[str, Tensor]:
        exchange = self._exchange(output)
        return {u: match_dtype(pooled(output.features[u]), exchange) for u in exchange.modalities}

    @torch.no_grad()
    def _count_gates(self, output: Output, gates: Mapping[str, Tensor]) -> None:
        """Take a batch's gates, over all processes, into the running means."""
        present = presence(output, list(gates)).to(self.counts.dtype)
        columns = zip(gates.values(), present.unbind(1), strict=True)
        total = all_reduce_sum(torch.cat([present.sum(0), *(w @ values.to(w.dtype) for values, w in columns)]))
        number, sums = total.split([len(self.counts), len(self.mean_gates)])
        self.counts = self.counts + number
        widths = [values.shape[1] for values in gates.values()]
        new, seen = (
            torch.cat([value.expand(d) for value, d in zip(each.unbind(), widths, strict=True)])
            for each in (number, self.counts.clamp(min=1))
        )
        self.mean_gates = self.mean_gates + (sums - new * self.mean_gates) / seen

    def _replace_gates(self, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gates, in a window the running means of the leader's."""
        means = self.mean_gates.split([values.shape[1] for values in gates.values()])
        return {
            u: torch.where((self.remaining > 0) & (self.leader == i), mean.to(values.dtype), values)
            for i, ((u, values), mean) in enumerate(zip(gates.items(), means, strict=True))
        }


def _pace(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Squared ratio of the norms of gradients and weights.

    It is zero without gradients.
    """
    weights = list(parameters)
    gradients = [p.grad for p in weights if p.grad is not None]
    norm = joint_norm(weights)
    pace = joint_norm(gradients) / norm if gradients else torch.zeros_like(norm)
    return pace.square()
