"""How metrics are named, shown and compared."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class MetricForm:
    """How a metric is named, shown and compared.

    Attributes:
        name: Name in files and options.
        title: Name in sentences and tables.
        larger_is_better: Whether a larger value is better.
        is_rate: Whether it is a fraction, shown in per cent.

    Example:
        >>> form = metric_form("macro_f1")
        >>> form.title, form.text(0.8123), form.head("fused"), metric_form("accuracy").head("fused")
        ('macro-F1', '81.2 %', 'multimodal macro-F1 (%)', 'multimodal (%)')
        >>> metric_form("mae").text(0.8123), metric_form("mae").is_better(0.7, 0.8)
        ('0.812', True)
    """

    name: str
    title: str
    larger_is_better: bool = True
    is_rate: bool = True

    @property
    def factor(self) -> float:
        """Factor of the shown number."""
        return 100.0 if self.is_rate else 1.0

    @property
    def digits(self) -> int:
        """Decimals of the shown number."""
        return 1 if self.is_rate else 3

    @property
    def heading(self) -> str:
        """Title at the beginning of a sentence."""
        return f"{self.title[:1].upper()}{self.title[1:]}" if self.title[:2].islower() else self.title  # not of mAP

    @property
    def label(self) -> str:
        """Title with the unit, as of an axis."""
        return f"{self.title} (%)" if self.is_rate else self.title

    @property
    def ratio_title(self) -> str:
        """Words for the ratio of two modalities' validation scores."""
        return f"ratio of validation {'accuracies' if self.name == 'accuracy' else self.title}"

    def head(self, of: str) -> str:
        """Head of the column of a prediction; of accuracies, the customary ones, the unit says what they are."""
        label = prediction_label(of)
        return f"{label} (%)" if self.name == "accuracy" else f"{label} {self.label}"

    def text(self, value: float | None, interval: tuple[float, float] | None = None) -> str:
        """A value with its unit, and its interval; a dash for None and NaN."""
        if value is None or math.isnan(value):
            return "–"
        ends = "" if interval is None else f" [{', '.join(self.number(end) for end in interval)}]"
        return f"{self.number(value)}{' %' if self.is_rate else ''}{ends}"

    def number(self, value: float, *, signed: bool = False) -> str:
        """A value without its unit."""
        return f"{self.factor * value:{'+' if signed else ''}.{self.digits}f}"

    def goodness(self, value: float) -> float:
        """The value, larger for better."""
        return value if self.larger_is_better else -value

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value is better than another; any is better than NaN."""
        return self.order(value) > self.order(than)

    def order(self, value: float) -> tuple[bool, float]:
        """Key by which values are sorted, the best last and NaN first."""
        return not math.isnan(value), self.goodness(value)

    def constant_text(self, value: float | None) -> str:
        """Words for the score of the best constant prediction."""
        if self.name == "accuracy":
            return f"majority rate {self.text(value)}"
        return f"{self.title} of a constant prediction {self.text(value)}"


def prediction_label(name: str) -> str:
    """Word for a prediction in tables, figures and sentences.

    Args:
        name: Its name in files and code: ``fused`` of the prediction from all modalities, else the modality.

    Example:
        >>> prediction_label("fused"), prediction_label("audio")
        ('multimodal', 'audio')
    """
    return "multimodal" if name == "fused" else name


def metric_form(name: str) -> MetricForm:
    """Form of a metric by its name; one that is not known is a number that should be large."""
    return _FORMS.get(name) or MetricForm(name, name.replace("_", " "), is_rate=False)


_FORMS = {
    form.name: form
    for form in (
        MetricForm("accuracy", "accuracy"),
        MetricForm("macro_f1", "macro-F1"),
        MetricForm("balanced_accuracy", "balanced accuracy"),
        MetricForm("nll", "NLL", larger_is_better=False, is_rate=False),
        MetricForm("ece", "ECE", larger_is_better=False),
        MetricForm("auroc", "AUROC"),
        MetricForm("mean_average_precision", "mAP"),
        MetricForm("mae", "MAE", larger_is_better=False, is_rate=False),
        MetricForm("rmse", "RMSE", larger_is_better=False, is_rate=False),
        MetricForm("pearson", "Pearson's correlation", is_rate=False),
        MetricForm("acc2_nonnegative", "Acc-2 (has zero)"),
        MetricForm("acc2_positive", "Acc-2 (non-zero)"),
        MetricForm("f1_nonnegative", "F1 (has zero)"),
        MetricForm("f1_positive", "F1 (non-zero)"),
        MetricForm("acc7", "Acc-7"),
    )
}
