"""MLA: multimodal learning with alternating unimodal adaptation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bmlr._checks import check_choice, check_integer
from bmlr.encoders.features import pooled
from bmlr.functional import log_probabilities, widened
from bmlr.fusion import match_dtype
from bmlr.methods._alternating import (
    AlternatingMethod,
    check_named_weights,
    check_weights,
    fixed_shares,
    merge_logits,
)
from bmlr.methods._support import all_reduce_sum, classification, presence, world_size
from bmlr.methods._types import ALL_TASKS, Conformance, EpochContext, EpochPlan, Losses, MethodInfo, Prediction
from bmlr.model import MultimodalClassifier, Output
from bmlr.tasks import Regression, Task


class MLA(AlternatingMethod):
    r"""MLA (Zhang et al., 2024): modalities adapt in turns to one shared head.

    A linear head W is shared by all modalities; the model's fusion is not used. On every batch each modality takes an
    optimiser step of its own, in the order of the model, on :math:`\mathrm{CE}(y, W z^u)`. So that W keeps its
    response to what it has seen, its weight gradient is projected by a matrix P of recursive least squares, which
    starts as the identity. With r the mean feature of the batch and :math:`k = P r`,

    .. math::

       P \leftarrow P - \frac{k k^\top}{\alpha + r^\top k}, \qquad P \leftarrow P / \lVert P \rVert_F, \qquad
       \nabla_W \leftarrow \nabla_W P^\top, \qquad \alpha = 0.1^{1 + e},

    where e is the fraction of the epoch that is done. The very first step of a training is taken without, and leaves P
    as it is. The prediction is :math:`\sum_u w_u W z^u`. By default its weights follow the certainty of each modality
    in each sample, :math:`w_u \propto \exp(\max_v H_v - H_u)` with the entropy H of its predicted distribution.

    In the official code the projection never runs: it looks for a parameter ``module.weight``, and is given the head
    alone, whose parameter is called ``weight``. ``projection=False`` is what that code trains. It would divide by a d
    × d matrix in place of the number :math:`\alpha + r^\top k`, and its entropies are over the samples of the batch
    in place of the classes, one number per batch. Those are taken for slips, and this is the paper's form.

    Deviations: e counts samples, where the official code counts batches; where a loop does not tell how many there
    are, it is 0 in the first epoch and goes by the epoch before in the others. The official PyTorch (1.8) sets
    gradients of a step to zeros rather than none, so that momentum and weight decay move the modalities of a batch
    that have had their turn once more in each later turn; here they rest. Samples that lack a modality do not count in
    its step, nor in the weights. Under distributed training r is the mean over all processes. With several labels
    (ours) H is the mean over the labels of that of the pair (1 − p, p); a predicted number has no entropy, and its
    weights are fixed.

    Args:
        projection: Whether to project the gradient of W.
        weighting: Weights at test time, ``entropy`` or ``fixed``; None is ``entropy`` of classes and labels, and
            ``fixed`` where ``weights`` are given or numbers are predicted.
        weights: Fixed weight > 0 of each modality, such as ``{"audio": 0.55, "video": 0.45}``, of which only the
            ratios count; None weighs all alike. 0.35, 0.25 and 0.4 of audio, video and text in the official code.
        width: Width to which a linear layer per modality (ours) brings its features before the head; None has no such
            layers, and needs features of equal widths, as in the paper.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> model = bmlr.MultimodalClassifier({"a": torch.nn.Linear(4, 8), "v": torch.nn.Linear(6, 8)}, 3)
        >>> method = bmlr.methods.MLA()
        >>> method.setup(model)
        >>> context = bmlr.methods.EpochContext(epoch=0, max_epochs=10, model=model, num_train=2)
        >>> [entry.tag for entry in method.start_epoch(context).passes]
        ['modality:a', 'modality:v']
        >>> batch = bmlr.Batch({"a": torch.randn(2, 4), "v": torch.randn(2, 6)}, torch.tensor([0, 2]), tag="modality:v")
        >>> sorted(method.compute_losses(model, batch).terms)
        ['v']
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        paper="Multimodal Representation Learning by Alternating Unimodal Adaptation",
        venue="CVPR 2024",
        url="https://arxiv.org/abs/2311.10707",
        family="architecture and heads",
        cost="1 forward and 1 backward of each encoder, M optimiser steps",
    )
    tasks: ClassVar[tuple[str, ...]] = ALL_TASKS
    conformance: ClassVar[Conformance] = Conformance(short={"width": 6})
    state_attributes: ClassVar[tuple[str, ...]] = (*AlternatingMethod.state_attributes, "step", "num_train", "seen")

    projector: Tensor | None

    def __init__(
        self,
        projection: bool = True,
        weighting: Literal["entropy", "fixed"] | None = None,
        weights: dict[str, float] | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.projection = bool(projection)
        self.weighting = None if weighting is None else check_choice("weighting", weighting, ("entropy", "fixed"))
        self.weights = check_weights(weights)
        if weighting == "entropy" and weights is not None:
            raise ValueError(f"Parameter `weighting` should be 'fixed' where `weights` are given. Found {weights}.")
        self.width = None if width is None else check_integer("width", width, 1)
        self.head: nn.Module = nn.ModuleDict()  # W, once it is made
        self.adapters = nn.ModuleDict()
        self.register_buffer("projector", None)  # P, shape (d, d)
        self._start_over(())

    def _start_over(self, modalities: Iterable[str]) -> None:
        #: Optimiser steps so far.
        self.step = 0
        #: Number of training samples; 0 if it is not known yet.
        self.num_train = 0
        #: Samples of the epoch that each modality has had, by sorted name.
        self.seen = torch.zeros(len(tuple(modalities)), dtype=torch.int64)
        self._summed: Tensor | None = None  # features of the optimiser step under way, and their number, shape (d + 1,)
        self._batch_size = 0

    def setup(self, model: MultimodalClassifier) -> None:
        """Make the shared head.

        Raises:
            ValueError: If feature widths differ, ``weights`` do not name the modalities, or a regression, whose
                predictions have no entropy, is to be weighted by it.
        """
        super().setup(model)
        check_named_weights(self.weights, model.modalities)
        if self.weighting == "entropy" and isinstance(model.task, Regression):
            raise ValueError(
                "Parameter `weighting` should be 'fixed' for a regression task: a predicted number has no entropy. "
                "Found `weighting = 'entropy'`."
            )
        widths, like = model.fusion.feature_dims, next(model.parameters())
        if self.width is None and len(set(widths.values())) > 1:
            listed = ", ".join(f"{width} of '{name}'" for name, width in widths.items())
            raise ValueError(
                f"MLA shares one head, which needs features of equal widths. Found {listed}. Give encoders of the same "
                "width, or `width`, to which a linear layer then brings each."
            )
        width = self.width or next(iter(widths.values()))
        linear = {name: nn.Linear(own_width, width) for name, own_width in widths.items()} if self.width else {}
        self.adapters = nn.ModuleDict(linear).to(like)
        self.head = nn.Linear(width, model.task.num_outputs).to(like)
        self.projector = torch.eye(width, device=like.device, dtype=widened(like).dtype) if self.projection else None
        self._start_over(model.modalities)

    def plan_epoch(self, context: EpochContext) -> EpochPlan:
        """Plan a pass per modality, aligned batch by batch."""
        self.num_train, self.seen = context.num_train or max(self.seen.tolist(), default=0), torch.zeros_like(self.seen)
        return super().plan_epoch(context)

    def learners(self, name: str) -> Iterable[nn.Module]:
        """The head, and the modality's linear layer to its width."""
        return [self.head, *(layer for of, layer in self.adapters.items() if of == name)]

    def modality_losses(self, name: str, output: Output, targets: Tensor) -> Losses:
        """Loss of the shared head; training also sums the features."""
        features = self._features(name, output)
        loss = output.task.loss(self.head(features), targets, output.mask(name))
        if self.projector is not None and self.training and torch.is_grad_enabled():
            counted = output.task.counted(targets, output.mask(name))
            values = features.detach().to(self.projector)
            values = torch.cat([values, torch.ones_like(values[:, :1])], 1)
            total = (values if counted is None else torch.where(counted[:, None], values, 0.0)).sum(0)
            self._summed = total if self._summed is None else self._summed + total
            self._batch_size += len(targets)
        return Losses({name: loss})

    @torch.no_grad()
    def change_gradients(self, model: MultimodalClassifier) -> None:
        """Project the gradient of W; all but the learning modality rests."""
        super().change_gradients(model)
        if self._active is None or self._summed is None or self.projector is None:
            return
        total = all_reduce_sum(self._summed)
        position = sorted(model.encoders).index(self._active)
        if self.step:
            mean = total[:-1] / total[-1].clamp(min=1)
            done = min(float(self.seen[position]) / self.num_train, 1.0) if self.num_train else 0.0
            self.projector = updated_projector(self.projector, mean, 0.1 ** (1 + done))
            weight = self.head.get_parameter("weight")
            if weight.grad is not None:
                weight.grad = (weight.grad.to(self.projector) @ self.projector.T).to(weight)
        self.step += 1
        self.seen[position] += self._batch_size * world_size()
        self._summed, self._batch_size = None, 0

    def predict(self, output: Output) -> Prediction:
        """Weighted sum of the modalities' logits, and the logits of each."""
        logits = {name: widened(self.head(self._features(name, output))) for name in output.features}
        fixed = self.weights is not None or self.weighting == "fixed" or isinstance(output.task, Regression)
        dtype = next(iter(logits.values())).dtype
        shares = fixed_shares(output, self.weights, dtype) if fixed else _certainty_shares(output, logits)
        return Prediction(merge_logits(logits, shares), logits)

    def _features(self, name: str, output: Output) -> Tensor:
        """Features in the width of the head, shape (B, d)."""
        if not isinstance(self.head, nn.Linear) or (self.width and name not in self.adapters):
            raise RuntimeError(
                f"MLA has no head for '{name}': call `method.setup(model)` once, before the optimiser is made."
            )
        features = match_dtype(pooled(output.features[name]), self.head)
        return self.adapters[name](features) if self.width else features


def updated_projector(projector: Tensor, mean: Tensor, alpha: float) -> Tensor:
    """Projection P after a step of recursive least squares.

    Its Frobenius norm is 1.

    Args:
        projector: P, symmetric, shape (d, d).
        mean: Mean feature r of the batch, shape (d,).
        alpha: Regularisation α > 0; the smaller, the more of r is taken out.

    Example:
        >>> import torch
        >>> updated_projector(torch.eye(2), torch.tensor([3.0, 0.0]), 1.0)
        tensor([[0.0995, 0.0000],
                [0.0000, 0.9950]])
    """
    gain = projector @ mean
    # Rounding can make the quadratic form of a nearly singular P negative, and the division explode.
    updated: Tensor = projector - torch.outer(gain, gain) / (alpha + (mean @ gain).clamp(min=0))
    norm: Tensor = updated.norm()
    return updated / norm.clamp(min=torch.finfo(updated.dtype).tiny)


def _certainty_shares(output: Output, logits: Mapping[str, Tensor]) -> Tensor:
    """Shares ∝ exp(−H) of the modalities present, shape (B, M)."""
    certainty = torch.stack([-entropy(output.task, values) for values in logits.values()], 1)
    return certainty.masked_fill(~presence(output), torch.finfo(certainty.dtype).min).softmax(1)


def entropy(task: Task, logits: Tensor) -> Tensor:
    """Entropy of each sample's prediction in nats, shape (B,).

    That of several labels is their mean.

    Example:
        >>> import torch, bmlr
        >>> entropy(bmlr.tasks.Multiclass(3), torch.zeros(1, 3))
        tensor([1.0986])
    """
    choices = classification(task)
    log_p = log_probabilities(choices.choice_logits(logits))
    return choices.per_sample(-(log_p.exp() * log_p).sum(1))
