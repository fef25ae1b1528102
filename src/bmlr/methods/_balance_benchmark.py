"""BalanceBenchmark's forms of CML, MBSD, LFM and ReconBoost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_integer
from bmlr.batch import Batch
from bmlr.functional import widened
from bmlr.methods._cml import CML
from bmlr.methods._lfm import LFM
from bmlr.methods._mbsd import MBSD, either_correct, pair_log_probabilities, true_confidence
from bmlr.methods._reconboost import ReconBoost
from bmlr.methods._support import select
from bmlr.methods._types import Conformance, EpochContext, EpochPlan, MethodInfo

#: Lower bound of a confidence inside a logarithm; p log p is zero to float32 below it, its gradient would not be.
_MINIMUM_CONFIDENCE = 1e-8


class CMLBalanceBenchmark(CML):
    r"""CML as in BalanceBenchmark.

    The order of removal is drawn once per epoch, and no sample is masked. The ranking loss is
    :math:`\max(0, \sum_i (q_{k,i} - q_{k-1,i}))`, the positive part of a sum over the batch.

    Args:
        weight: Weight λ ≥ 0 of the ranking loss.
        order: How often an order of removal is drawn: for each ``sample``, ``batch`` or ``epoch``.
        first_epoch: First epoch, from zero, in which the method acts.
        last_epoch: Last epoch in which it acts; None is no end.
        seed: Seed of the orders of removal, beside the run's.

    Example:
        >>> import bmlr
        >>> bmlr.methods.CMLBalanceBenchmark(weight=0.2)
        CMLBalanceBenchmark(weight=0.2, order='epoch', first_epoch=0, last_epoch=80, seed=0)
    """

    info: ClassVar[MethodInfo] = CML.info
    epoch_parameters: ClassVar[tuple[str, ...]] = ("last_epoch",)
    conformance: ClassVar[Conformance] = Conformance(
        not_mean_over_samples="takes the positive part of a sum over the batch",
        not_mean_over_processes="takes the positive part of a sum over the batch of a process",
        sorted_names=True,
    )

    def __init__(
        self,
        weight: float = 0.1,
        order: Literal["sample", "batch", "epoch"] = "epoch",
        first_epoch: int = 0,
        last_epoch: int | None = 80,
        seed: int = 0,
    ) -> None:
        super().__init__(weight, order, first_epoch, last_epoch, seed)

    def _penalties(self, rises: Tensor, is_deserved: Tensor) -> Tensor:
        return rises

    def _reduce(self, values: Tensor, mask: Tensor | None) -> Tensor:
        return F.relu((values if mask is None else torch.where(mask, values, 0.0)).sum())


class MBSDBalanceBenchmark(MBSD):
    r"""MBSD as in BalanceBenchmark: a pointwise term for the divergence, no stop-gradient.

    The KL term is :math:`p^r_y (\log p^r_y - p^s_y)` (PyTorch's pointwise ``kl_div`` given a probability for its
    logarithm; never positive, no divergence). The squared distance is of logits for two modalities and of probabilities
    for more. Gradients also flow through the weights w and the stronger modality.

    Args:
        weight: Weight μ ≥ 0 of the distillation.
        first_epoch: First epoch, from zero, in which the method acts.
        last_epoch: Last epoch in which it acts; None is no end.

    Example:
        >>> import bmlr
        >>> bmlr.methods.MBSDBalanceBenchmark(last_epoch=20)
        MBSDBalanceBenchmark(weight=1.0, first_epoch=0, last_epoch=20)
    """

    info: ClassVar[MethodInfo] = MBSD.info
    epoch_parameters: ClassVar[tuple[str, ...]] = ("last_epoch",)

    def __init__(self, weight: float = 1.0, first_epoch: int = 0, last_epoch: int | None = 80) -> None:
        super().__init__(weight, first_epoch, last_epoch)

    def _distillation(self, first: Tensor, second: Tensor, targets: Tensor, num_modalities: int) -> Tensor:
        """Term w (KL + RS), shape (B,), with gradient everywhere."""
        log_p = pair_log_probabilities(first, second)
        confidence = true_confidence(log_p, targets)
        strong, weak = torch.maximum(*confidence), torch.minimum(*confidence)
        weight = (strong - weak) * either_correct(log_p, targets)
        divergence = weak * (weak.clamp(min=_MINIMUM_CONFIDENCE).log() - strong)
        gap = widened(first) - widened(second) if num_modalities == 2 else log_p[0].exp() - log_p[1].exp()
        return weight * (divergence + gap.square().mean(1))


class LFMBalanceBenchmark(LFM):
    r"""LFM as in BalanceBenchmark, with α learned on validation samples.

    α₀ starts at 0.95; the official start is 0.05. The samples are the first quarter of the first validation batch, at
    least two for batch normalisation. The model is in training mode for them, so that its batch statistics move. No
    training sample is held out.

    Args:
        alpha: ``fitted``, ``learnable`` or ``constant``.
        head: ``late_avg`` or ``fusion``.
        label_weight: α₀ in [0, 1] at the start (``learnable``) or throughout (``constant``); None takes 0.95, or 0.5
            where it is constant.
        schedule_epochs: Length of run the polynomial of ``fitted`` is stretched over; None takes that of the training.
        meta_lr: Step size of the learnable α, halved every 20 epochs.
        meta_size: Number of samples for the learnable α; None takes a quarter of a batch.
        meta_scope: Parameters whose gradient makes the step: the ``first`` of the model or ``all``.

    Example:
        >>> import bmlr
        >>> bmlr.methods.LFMBalanceBenchmark().current_label_weight
        0.95
    """

    info: ClassVar[MethodInfo] = LFM.info
    conformance: ClassVar[Conformance] = Conformance()
    _first_label_weight: ClassVar[float] = 0.95
    _meta_training: ClassVar[bool] = True

    def __init__(
        self,
        alpha: Literal["fitted", "learnable", "constant"] = "learnable",
        head: Literal["late_avg", "fusion"] = "fusion",
        label_weight: float | None = None,
        schedule_epochs: int | None = None,
        meta_lr: float = 1e-4,
        meta_size: int | None = None,
        meta_scope: Literal["first", "all"] = "first",
    ) -> None:
        super().__init__(alpha, head, label_weight, schedule_epochs, meta_lr, meta_scope=meta_scope)
        self.meta_size = None if meta_size is None else check_integer("meta_size", meta_size, 1)

    def _plan(self, context: EpochContext) -> EpochPlan:
        return EpochPlan()

    def _meta_samples(self, context: EpochContext) -> Batch:
        batch = next(iter(context.val_batches()), None)
        if batch is None:
            raise ValueError("LFMBalanceBenchmark with a learnable α needs a validation split. Found none.")
        size = max(2, len(batch) // 4) if self.meta_size is None else self.meta_size
        return select(batch, torch.arange(len(batch), device=batch.targets.device) < size)


class ReconBoostBalanceBenchmark(ReconBoost):
    """ReconBoost as in BalanceBenchmark: **an epoch has M stages**.

    An epoch is M (t1 + t2) passes over the data, 2 M by default. All modalities are in the ensemble from the start, H
    is one linear layer, r starts at 0.01 and the optimiser keeps its state.

    Args:
        t1: Passes with one modality per stage.
        t2: Passes with all per stage; 0 leaves rectification out.
        w1: Weight w₁ > 0.
        w2: Weight w₂ in [0, w₁].
        r_init: Start of the boost rate r.
        r_learnable: Whether r is learned, in rectification.
        shared_head: One H for all modalities or one for each; None shares it where the feature widths are equal.
        hidden: Width of the hidden layer of H; 0 is a linear layer.
        reset_optimizer_per_phase: Whether each phase starts with a fresh optimiser.
        mcr: Memory consolidation, ``none`` or ``real``.
        mcr_weight: Weight α ≥ 0 of ``mcr="real"``.
        clean_bn: Whether the modalities held still run in evaluation mode.
        order: The modalities in the order of their turns; None takes the model's.

    Example:
        >>> import bmlr
        >>> bmlr.methods.ReconBoostBalanceBenchmark().r_init
        0.01
    """

    info: ClassVar[MethodInfo] = dataclasses.replace(
        ReconBoost.info,
        cost="M (t1 + t2) passes per epoch; in t1 1 forward and the backward of one encoder",
    )
    conformance: ClassVar[Conformance] = Conformance(order_parameter="order")

    def __init__(  # noqa: PLR0913
        self,
        *,
        t1: int = 1,
        t2: int = 1,
        w1: float = 5.0,
        w2: float = 1.0,
        r_init: float = 0.01,
        r_learnable: bool = True,
        shared_head: bool | None = None,
        hidden: int = 0,
        reset_optimizer_per_phase: bool = False,
        mcr: Literal["none", "real"] = "none",
        mcr_weight: float = 0.5,
        clean_bn: bool = False,
        order: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            t1=t1,
            t2=t2,
            w1=w1,
            w2=w2,
            r_init=r_init,
            r_learnable=r_learnable,
            shared_head=shared_head,
            hidden=hidden,
            reset_optimizer_per_phase=reset_optimizer_per_phase,
            mcr=mcr,
            mcr_weight=mcr_weight,
            clean_bn=clean_bn,
            order=order,
        )

    def _stages(self, epoch: int) -> tuple[str, ...]:
        return self.turns
