"""G-Blend: weights of losses from overfitting and generalisation, measured by roll-outs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer
from bmlr._modes import module_mode
from bmlr._random import mixed_seed, preserved_random_state
from bmlr.batch import Batch
from bmlr.methods._support import HeadedMethod, all_reduce_mean, encode_batch, read_features, world_size
from bmlr.methods._types import ALL_TASKS, Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Remedy
from bmlr.model import MultimodalClassifier, Output

_FUSED = "fused"
#: Least size of O, by which G is divided twice.
_LEAST_OVERFITTING = 1e-4


class GBlend(HeadedMethod):
    r"""Gradient Blending (Wang et al., 2020).

    The multimodal loss and one per modality are weighted by how they generalise and overfit.

    The loss is :math:`\sum_h w_h\, \mathrm{CE}(y, h)` over the multimodal prediction and a linear head per modality.
    Before a super-epoch each h is trained alone from the present weights for as many epochs, a roll-out whose outcome
    is thrown away. With the mean losses :math:`L^{tr}` and :math:`L^{val}` at its start and its end

    .. math:: G_h = L^{val}_{start} - L^{val}_{end}, \qquad
              O_h = (L^{val} - L^{tr})_{end} - (L^{val} - L^{tr})_{start}, \qquad
              w_h = \frac1Z\, \frac{\max(G_h, 0)}{O_h^2}

    (Proposition 1 of the paper, with the true loss taken on the validation split), and Z such that the weights add up
    to 1. A roll-out trains an encoder and its head, or all encoders and the fusion, with an optimiser of the run's
    kind, its present learning rates and the random transforms of training; its dropout follows the seed of the run
    and the epoch. It leaves weights, statistics, gradients, the optimiser and all random streams as they were.

    With ``mode="online"`` the weights are found anew before every super-epoch, with ``offline`` once, before the first
    epoch. ``weights`` chooses among three rules, each of them with a lower bound of 1e-4 for :math:`|O_h|`, without
    which a head that does not overfit would get all weight:

    * ``paper``: as above. A head that does not generalise gets none; where none does, all weights are equal.
    * ``balance_benchmark``: :math:`|G_h| / O_h^2`, so that a head whose validation loss rises is weighted for it.
    * ``multibench``: the last validation loss for G and the last gap for O, 1e-4 where that is negative: what its code
      does by default, and neither the paper's G nor its O.

    Deviations: a roll-out that diverges gives weight 0, and none is longer than the epochs that are left. Clipping,
    accumulation, modality dropout and mixed precision of the run are left out of roll-outs, and the data passes of a
    result do not count them. What is wrong in the re-implementations and not taken over: BalanceBenchmark takes the end
    of the first epoch of a roll-out for its start, sums losses over batches, so that its O compares splits of different
    size, trains the multimodal head on zero inputs for the others in place of the heads it weights, and reads the test
    split where there is no validation split. MultiBench leaves encoders in training mode while it measures, takes the
    first 8 % of the training split for validation, and adds a stage of training the fusion alone. Here only the
    validation split is read. With several labels and numbers (ours) CE is the loss of the task.

    Args:
        super_epoch: Epochs between two roll-outs, and epochs of a roll-out; 10 in BalanceBenchmark, 20 in MultiBench.
        mode: ``online`` (default) or ``offline``.
        rollout_epochs: Epochs of a roll-out; None takes ``super_epoch``. In the paper's offline form it is as long as
            the training.
        weights: ``paper`` (default), ``balance_benchmark`` or ``multibench``.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> balancer = bmlr.Balancer(model, bmlr.methods.GBlend(super_epoch=1), optimizer, max_epochs=1)
        >>> train = [({"a": torch.randn(5, 4), "v": torch.randn(5, 6)}, torch.arange(5) % 3)]
        >>> val = [({"a": torch.randn(5, 4), "v": torch.randn(5, 6)}, torch.arange(5) % 3)]
        >>> [sorted(balancer.step(batch).terms) for batch in balancer.epoch(train, val)]
        [['a', 'fused', 'v']]
        >>> round(float(balancer.method.loss_weights.sum()), 6)
        1.0
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="What Makes Training Multi-Modal Classification Networks Hard?",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1905.12681",
        family="labels and losses",
        cost="about M + 2 times: 1 forward, 1 backward, and M + 1 roll-outs of an epoch per epoch",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    epoch_parameters: ClassVar[tuple[str, ...]] = ("super_epoch",)
    remedy: ClassVar[Remedy | None] = Remedy("encoder", "weights losses by how they generalise and overfit")
    conformance: ClassVar[Conformance] = Conformance(short={"super_epoch": 1})
    state_attributes: ClassVar[tuple[str, ...]] = (*HeadedMethod.state_attributes, "loss_weights")

    def __init__(
        self,
        super_epoch: int = 10,
        mode: Literal["online", "offline"] = "online",
        rollout_epochs: int | None = None,
        weights: Literal["paper", "balance_benchmark", "multibench"] = "paper",
    ) -> None:
        super().__init__()
        self.super_epoch = check_integer("super_epoch", super_epoch, 1)
        self.mode = check_choice("mode", mode, ("online", "offline"))
        self.rollout_epochs = None if rollout_epochs is None else check_integer("rollout_epochs", rollout_epochs, 1)
        self.weights = check_choice("weights", weights, ("paper", "balance_benchmark", "multibench"))
        #: Weights w of the losses, by sorted modality and the multimodal one last, shape (M + 1,).
        self.loss_weights = torch.zeros(0, dtype=torch.float64)

    def setup(self, model: MultimodalClassifier) -> None:
        """Make the heads; all weights are equal."""
        super().setup(model)
        count = len(model.modalities) + 1
        self.loss_weights = torch.full((count,), 1 / count, dtype=torch.float64)

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Find the weights, if it is time; one pass over all samples."""
        due = context.epoch % self.super_epoch == 0 if self.mode == "online" else context.epoch == 0
        if due:
            self.loss_weights = self._measure(context)
        return EpochPlan()

    def losses(self, output: Output, targets: Tensor) -> Losses:
        """The weighted losses of the multimodal logits and of the heads."""
        weights = dict(zip([*sorted(output.features), _FUSED], self.loss_weights, strict=True))
        losses = self.head_losses(output, targets).terms
        # A weight of the host that is a scalar needs no copy, and nothing waits for it.
        terms = {name: weights[name].to(loss.dtype) * loss for name, loss in losses.items()}
        return Losses(terms, {f"weight_{name}": weight for name, weight in weights.items()})

    def _measure(self, context: EpochContext) -> Tensor:
        """Weights of the losses, from a roll-out of each."""
        model, heads = context.model, [*sorted(context.model.modalities), _FUSED]
        weights = []
        with preserved_random_state():
            start = self._mean_losses(context, heads)
            if not math.isfinite(start[_FUSED][1]):
                raise ValueError(
                    "GBlend needs a validation split with targets, by which it weights its losses. Found no finite "
                    "loss there: give bmlr.Balancer.epoch `val`, or the trainer a loader for validation."
                )
            with _thrown_away(model, self) as restore:
                for head in heads:
                    torch.manual_seed(mixed_seed(context.seed, context.epoch))
                    self._roll_out(context, head)
                    weights.append(self.weight(*start[head], *self._mean_losses(context, [head])[head]))
                    restore()
        total = math.fsum(weights)  # in any order the same to the last digit
        found = torch.tensor([w / total if total else 1 / len(heads) for w in weights], dtype=torch.float64)
        if world_size() > 1:  # kernels of GPUs may differ between processes by a rounding
            found = all_reduce_mean(found.to(next(model.parameters()).device)).cpu()
        return found

    def weight(self, train_start: float, val_start: float, train_end: float, val_end: float) -> float:
        """Weight of a loss before they are scaled to the sum 1, from its means around a roll-out."""
        gain, overfitting = val_start - val_end, (val_end - train_end) - (val_start - train_start)
        if self.weights == "paper":
            gain = max(gain, 0.0)
        elif self.weights == "multibench":
            gain, overfitting = val_end, max(val_end - train_end, 0.0)
        weight = abs(gain) / max(abs(overfitting), _LEAST_OVERFITTING) ** 2
        return weight if math.isfinite(weight) else 0.0

    def _roll_out(self, context: EpochContext, head: str) -> None:
        """Train one prediction alone."""
        model = context.model
        parts = [model] if head == _FUSED else [model.encoders[head], self.heads[head]]
        optimizer = context.make_optimizer(p for part in parts for p in part.parameters())
        epochs = self.rollout_epochs or min(self.super_epoch, context.max_epochs - context.epoch)
        with torch.enable_grad(), module_mode(model, self, training=True):
            for epoch in range(epochs):
                for batch in context.shuffled_batches(epoch):
                    logits, mask = self._predictions(model, batch, [head])[head]
                    optimizer.zero_grad()
                    model.task.loss(logits, batch.targets, mask).backward()
                    optimizer.step()

    @torch.no_grad()
    def _mean_losses(self, context: EpochContext, heads: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Mean losses on the training and the validation split, in evaluation mode; NaN without samples."""
        task, means = context.model.task, []
        with module_mode(context.model, training=False):
            for batches in (context.train_batches, context.val_batches):
                sums, counts = dict.fromkeys(heads, 0.0), dict.fromkeys(heads, 0)
                for batch in batches():
                    for head, (logits, mask) in self._predictions(context.model, batch, heads).items():
                        losses, counted = task.sample_losses(logits, batch.targets), task.counted(batch.targets, mask)
                        losses = losses if counted is None else losses[counted]
                        sums[head] += float(losses.double().sum())
                        counts[head] += len(losses)
                means.append({head: sums[head] / counts[head] if counts[head] else math.nan for head in heads})
        return {head: (means[0][head], means[1][head]) for head in heads}

    def _predictions(
        self, model: MultimodalClassifier, batch: Batch, heads: Sequence[str]
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Logits of some predictions and the samples they count for; only the encoders that they need run."""
        present = batch.present or {}
        names = model.modalities if _FUSED in heads else heads
        features = {name: encode_batch(model, batch, name) for name in names}
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for head in heads:
            if head == _FUSED:
                found[head] = model.fusion(features), None
            else:
                found[head] = read_features(self.heads[head], features[head]), present.get(head)
        return found


@contextmanager
def _thrown_away(*modules: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore weights, buffers and gradients afterwards, and whenever the given function is called."""
    tensors = [x for module in modules for x in (*module.parameters(), *module.buffers())]
    values, gradients = [x.detach().clone() for x in tensors], [x.grad for x in tensors]

    @torch.no_grad()
    def restore() -> None:
        for tensor, value, gradient in zip(tensors, values, gradients, strict=True):
            tensor.copy_(value)
            tensor.grad = gradient

    for tensor in tensors:
        tensor.grad = None
    try:
        yield restore
    finally:
        restore()
