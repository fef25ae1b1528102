"""Numbers as targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bmlr._checks import check_choice, check_integer, check_positive
from bmlr.functional import widened
from bmlr.tasks._base import Task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    r"""Numbers as targets, by squared, absolute or Huber loss.

    Targets are floating-point numbers, shape (B,) or (B, K), of which none is NaN or infinite. Where there are several
    outputs the loss is the mean over them. With the error e of a prediction in units of ``scale``, the confidence of a
    sample is :math:`1 / (1 + \overline{e^2})`, an invention of ours for readers who want a number in [0, 1]; methods
    compare errors.

    The terms of a fusion that is a sum over M modalities are shares of the prediction. Taken alone, a modality predicts
    M times its term, so that the multimodal prediction is the mean of the unimodal ones.

    Args:
        num_outputs: Number of outputs K, at least 1.
        criterion: Loss of an error: ``mse``, ``mae`` or ``huber`` (squared up to one unit, then linear).
        scale: Unit > 0 of errors in loss and confidence, such as the targets' standard deviation; None is 1.
            Predictions stay in the unit of the targets.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import torch, bmlr
        >>> task = bmlr.tasks.Regression(criterion="mae")
        >>> predicted, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([1.5, 1.0])
        >>> task.loss(predicted, targets), task.predict(predicted)
        (tensor(1.2500), tensor([1., 3.]))
    """

    name: ClassVar[str] = "regression"
    primary: ClassVar[str] = "mae"

    num_outputs: int = 1
    criterion: Literal["mse", "mae", "huber"] = "mse"
    scale: float | None = None

    def __post_init__(self) -> None:
        check_integer("num_outputs", self.num_outputs, 1)
        check_choice("criterion", self.criterion, tuple(_LOSSES))
        if self.scale is not None:
            check_positive("scale", self.scale)

    def check_targets(self, targets: Tensor, batch_size: int) -> None:
        """Check for finite floating-point numbers, shape (B,) or (B, K).

        Raises:
            ValueError: If the targets are anything else.
        """
        shapes = [(batch_size, self.num_outputs), *([(batch_size,)] if self.num_outputs == 1 else [])]
        if not targets.is_floating_point():
            raise ValueError(
                f"`targets` should be floating-point numbers. Found dtype {targets.dtype}: convert them by "
                "`targets.float()`, or give the model the task of its classes."
            )
        if tuple(targets.shape) not in shapes:
            allowed = " or ".join(str(shape) for shape in reversed(shapes))
            raise ValueError(f"`targets` should have shape {allowed}. Found shape {tuple(targets.shape)}.")
        if targets.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.isfinite(targets).all():
            count = int((~torch.isfinite(targets)).sum())
            raise ValueError(f"`targets` should be finite numbers. Found {count} that are NaN or infinite.")

    def sample_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the outputs of each sample, shape (B,)."""
        predicted, wanted = self._scaled(logits, targets)
        return _LOSSES[self.criterion](predicted, wanted, reduction="none").mean(1)

    def label_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same, from targets of the shape (B, K)."""
        return self.sample_losses(logits, labels)

    def squared_errors(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over the outputs of each sample, in units of ``scale``, shape (B,)."""
        predicted, wanted = self._scaled(logits, targets)
        return (predicted - wanted).square().mean(1)

    def confidence(self, logits: Tensor, targets: Tensor) -> Tensor:
        """One over one plus the squared error, shape (B,)."""
        return 1 / (1 + self.squared_errors(logits, targets))

    def predict(self, logits: Tensor) -> Tensor:
        """The predicted numbers, shape (B,) for a single output, else (B, K)."""
        return logits.squeeze(1) if self.num_outputs == 1 else logits

    def labels(self, targets: Tensor) -> Tensor:
        """The targets, shape (B, K)."""
        return targets.reshape(-1, self.num_outputs)

    def constant_score(self, targets: Tensor) -> float:
        """Mean absolute error of the median."""
        values = self.labels(targets).double()
        return float((values - values.median(dim=0).values).abs().mean())

    def metrics(self) -> MetricCollection:
        """Mean absolute error, root mean squared error and Pearson's correlation."""
        from bmlr.tasks._metrics import regression_metrics

        return regression_metrics(self.num_outputs)

    def whole_predictions(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """M times each of the M terms, so that the multimodal prediction is their mean."""
        return {name: len(terms) * term for name, term in terms.items()}

    def _scaled(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction and target, shape (B, K), in units of ``scale``."""
        predicted = widened(logits)
        wanted = self.labels(targets).to(predicted.dtype)
        return (predicted, wanted) if self.scale is None else (predicted / self.scale, wanted / self.scale)


@dataclasses.dataclass(frozen=True)
class Sentiment(Regression):
    """Sentiment from −3 to 3, as in CMU-MOSI and CMU-MOSEI.

    A regression whose metrics are the customary ones of these data sets: mean absolute error and Pearson's correlation,
    Acc-7 (both scores rounded to an integer from −3 to 3), and Acc-2 and F1 in their two conventions. One counts zero
    as not negative (negative against the others, all samples). The other leaves out samples whose score is zero
    (negative against positive). F1 is weighted by the number of samples of each class.

    Args:
        num_outputs: Number of outputs, 1.
        criterion: Loss of an error; the customary one is ``mae``.
        scale: As in :class:`Regression`.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> import bmlr
        >>> sorted(bmlr.tasks.Sentiment().metrics())
        ['acc2_nonnegative', 'acc2_positive', 'acc7', 'f1_nonnegative', 'f1_positive', 'mae', 'pearson']
    """

    criterion: Literal["mse", "mae", "huber"] = "mae"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_outputs != 1:
            raise ValueError(f"`num_outputs` should be 1: sentiment is one number. Found {self.num_outputs}.")

    def metrics(self) -> MetricCollection:
        """MAE, Pearson's correlation, Acc-7, and Acc-2 and F1 in both conventions."""
        from bmlr.tasks._metrics import sentiment_metrics

        return sentiment_metrics()
