"""Pieces of methods that change gradients by the modalities' scores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from bmlr._modes import module_mode
from bmlr.batch import Batch
from bmlr.functional import widened
from bmlr.fusion import ConcatFusion, CosineFusion, Fusion, SumFusion
from bmlr.methods._base import Method
from bmlr.methods._support import all_reduce_sum, classification
from bmlr.methods._types import EpochContext
from bmlr.model import Output
from bmlr.tasks import Regression, Task

#: Numbers of dimensions of the parameters that each scope names.
SCOPES = {"weight": range(2, 100), "conv": (4,), "all": range(100)}


class ScoredMethod(Method):
    """A method with sums over the samples of an optimiser step, by which it changes the gradients.

    They go over accumulated batches and processes, so that accumulation changes nothing.
    """

    def _forget_calls(self) -> None:
        super()._forget_calls()
        self._sums: Tensor | None = None

    def add_sums(self, sums: Tensor) -> None:
        """Add the sums of a batch, without gradient."""
        self._sums = sums if self._sums is None else self._sums + sums

    def take_sums(self) -> Tensor | None:
        """Sums of the step over all processes, which are then forgotten; None without any batch."""
        sums, self._sums = self._sums, None
        return None if sums is None else all_reduce_sum(sums)


def check_set_up(method: Method, count: int, output: Output) -> None:
    """Raise a RuntimeError unless a state of ``count`` modalities fits the model's output."""
    if count != len(output.features):
        raise RuntimeError(
            f"{type(method).__name__} was not set up for this model: call `method.setup(model)` once, before the "
            "optimiser is made."
        )


# Scores


@torch.no_grad()
def batch_scores(output: Output, targets: Tensor) -> Tensor:
    """Score of each modality in a batch, shape (M,), by sorted name.

    It is the sum of its confidences in the targets. For a regression it is the batch size times its mean squared error,
    or, without any sample, the others'.
    """
    logits, task = detached_unimodal_logits(output), output.task
    scores = []
    for name in sorted(output.features):
        mask = output.mask(name)
        if isinstance(task, Regression):
            errors = task.squared_errors(logits[name], targets)
            total, count = (
                (errors.sum(), len(targets)) if mask is None else (torch.where(mask, errors, 0.0).sum(), mask.sum())
            )
            scores.append(total / count * len(targets))
            continue
        values = task.confidence(logits[name], targets)
        scores.append(values.sum() if mask is None else torch.where(mask, values, 0.0).sum())
    stacked = torch.stack(scores)
    return torch.where(stacked.isnan(), stacked.nanmean(), stacked) if isinstance(task, Regression) else stacked


@torch.no_grad()
def score_sums(output: Output, logits: Mapping[str, Tensor], targets: Tensor, *, errors: bool = True) -> Tensor:
    """Sum of the scores of each modality and number of its samples, shape (2, M), by sorted name.

    The score of a sample is its confidence in the target. Samples that lack the modality or a target do not count.

    Args:
        output: Output of the model for the batch.
        logits: Unimodal logits, shape (B, C) each.
        targets: Targets of the task.
        errors: Take the squared error as the score of a regression.
    """
    task, columns = output.task, []
    for name in sorted(logits):
        score = task.squared_errors if errors and isinstance(task, Regression) else task.confidence
        values = score(logits[name].detach(), targets)
        columns.append(counted_sum(values, task.counted(targets, output.mask(name))))
    return torch.stack(columns, 1)


@torch.no_grad()
def accuracy_sums(output: Output, logits: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Number of right answers of each modality and of its samples, shape (2, M), by sorted name.

    With several labels an answer is the fraction of right labels. For a regression it is the squared error.
    """
    task, columns = output.task, []
    for name in sorted(logits):
        if isinstance(task, Regression):
            values = task.squared_errors(logits[name], targets)
        else:
            choices = classification(task)
            is_right = choices.choice_logits(logits[name]).argmax(1) == choices.class_indices(targets)
            values = choices.per_sample(is_right.to(widened(logits[name]).dtype))
        columns.append(counted_sum(values, task.counted(targets, output.mask(name))))
    return torch.stack(columns, 1)


@torch.no_grad()
def validation_sums(
    context: EpochContext, sums_of: Callable[[Batch], Tensor], *, purpose: str, alternative: str = ""
) -> Tensor:
    """Sums of scores over the validation split and numbers of samples, shape (2, M), on the CPU.

    Args:
        context: Model and data.
        sums_of: Gives those of a batch, in evaluation mode.
        purpose: What the method does with them, for the error.
        alternative: What to do without a validation split, for the error.

    Raises:
        ValueError: If there is no sample with a target.
    """
    sums = torch.zeros(2, len(context.model.modalities), dtype=torch.float64)
    with module_mode(context.model, training=False):
        for batch in context.val_batches():
            sums += sums_of(batch).cpu()
    if not bool(sums[1].any()):
        raise ValueError(
            f"{purpose} the validation split: give `val` a loader of samples with targets{alternative}. Found none."
        )
    return sums


def counted_sum(values: Tensor, mask: Tensor | None) -> Tensor:
    """Sum of values, shape (B,), over the samples of a mask, and their number: shape (2,)."""
    if mask is None:
        return torch.stack([values.sum(), values.new_full((), float(len(values)))])
    return torch.stack([torch.where(mask, values, 0.0).sum(), mask.sum().to(values.dtype)])


def mean_scores(sums: Tensor) -> Tensor:
    """Mean score of each modality, shape (M,), from sums and numbers, shape (2, M).

    Without any sample it is the mean of the others'.
    """
    means = sums[0] / sums[1]
    return torch.where(means.isnan(), means.nanmean(), means).nan_to_num(nan=1.0)


def lead(scores: Tensor, others: Tensor, task: Task) -> Tensor:
    """Ratio by which each modality leads the others, from the scores of :func:`batch_scores`; 1 is level.

    The better confidence is the larger one, the better error the smaller one: errors are compared the other way round,
    as in MLB for regression (Kontras et al., 2024).
    """
    return others / scores if isinstance(task, Regression) else scores / others


def mean_of_others(scores: Tensor) -> Tensor:
    """Mean of the other modalities' scores, shape (M,)."""
    is_other = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return torch.where(is_other, scores.expand(len(scores), -1), 0.0).sum(1) / (len(scores) - 1)


def detached_unimodal_logits(output: Output) -> dict[str, Tensor]:
    """Unimodal logits without graph, shape (B, C) each."""
    with torch.no_grad():
        return output.replace_features(output.detached_features).unimodal_logits


# Gradients


def encoder_gradients(encoder: nn.Module, scope: str = "all") -> list[Tensor]:
    """Gradients of an encoder that are set, of the parameters in a scope."""
    return [p.grad for p in encoder.parameters() if p.ndim in SCOPES[scope] and p.grad is not None]


def scale_gradients(gradients: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply gradients in place, without waiting for the device."""
    if gradients:
        torch._foreach_mul_(list(gradients), coefficient.to(gradients[0].dtype))


def fusion_slices(fusion: Fusion) -> dict[str, tuple[Tensor, slice]]:
    """Weight of the fusion that reads one modality alone, with its columns, by name.

    They are the columns of a concatenation and the heads of a sum, also of cosines. Any other fusion has none.
    """
    if isinstance(fusion, ConcatFusion):
        widths = fusion.feature_dims
        ends = dict(zip(widths, itertools.accumulate(widths.values()), strict=True))
        return {name: (fusion.linear.weight, slice(ends[name] - widths[name], ends[name])) for name in widths}
    if isinstance(fusion, SumFusion | CosineFusion):
        return {name: (fusion.heads[name].get_parameter("weight"), slice(None)) for name in fusion.feature_dims}
    return {}
