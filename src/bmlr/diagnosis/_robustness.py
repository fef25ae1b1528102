"""Score of a model over the rate of missing modalities and the level of noise."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from bmlr._checks import check_modalities
from bmlr._modes import module_mode
from bmlr.batch import Batch, as_batch
from bmlr.diagnosis._corruption import Corruption, input_scales
from bmlr.diagnosis._predictions import check_batch, first_modalities
from bmlr.diagnosis._removal import AbsentModalityPredictor, ModelFunction, device_of, modules_of
from bmlr.diagnosis._replacements import RemovalOptions, chosen_inputs, make_replacements
from bmlr.diagnosis._resampling import IntervalEstimate, ResampledMeans
from bmlr.diagnosis._tables import plain_values
from bmlr.methods import Method, Prediction
from bmlr.model import MultimodalClassifier
from bmlr.tables import Cell, Table, format_count
from bmlr.tasks import MetricForm, Multiclass, Task, metric_form, prediction_label

#: Rates and levels of a modality that is named without any.
RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
LEVELS = (0.0, 0.25, 0.5, 1.0, 2.0)

#: One rate or level, or several to sweep.
Levels: TypeAlias = float | Sequence[float]


@dataclasses.dataclass(frozen=True)
class CorruptedScore:
    """Score of a model under one corruption.

    Attributes:
        corruption: The corruption.
        scores: Score by the multimodal prediction, ``fused``, and by each modality with logits of its own, over the
            samples that still have it.
        lost: What the multimodal prediction loses to the corruption, positive if it gets worse.
    """

    corruption: Corruption
    scores: dict[str, IntervalEstimate]
    lost: IntervalEstimate


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Scores of a model under corruptions of its inputs.

    Attributes:
        subject: Model and data, for captions.
        metric: What is scored, such as ``accuracy``.
        samples: Number of samples.
        clean: Score without any corruption.
        fixed: Score under the corruptions given by a single rate or level, all together; None without any.
        sweeps: Scores over the rates or levels of one modality, by a label such as ``missing audio``, each with its
            rates or levels; the fixed corruptions are added to all.
    """

    subject: str
    metric: str
    samples: int
    clean: CorruptedScore
    fixed: CorruptedScore | None
    sweeps: dict[str, list[tuple[float, CorruptedScore]]]

    @property
    def form(self) -> MetricForm:
        """How the metric is shown."""
        return metric_form(self.metric)

    @property
    def lost_head(self) -> str:
        """Head of a column of what is lost."""
        return "points lost" if self.form.is_rate else "worse by"

    def rows(self) -> list[CorruptedScore]:
        """All scores, each corruption once."""
        scores = [self.clean, *([] if self.fixed is None else [self.fixed])]
        scores += [score for sweep in self.sweeps.values() for _, score in sweep]
        return list({str(score.corruption.effective): score for score in scores}.values())

    def table(self) -> Table:
        """A row per corruption."""
        names = list(self.clean.scores)
        rows = [
            [
                Cell(str(score.corruption.effective) or "clean"),
                *(Cell(self.format(score.scores[name])) for name in names[:1]),
                Cell(self.format(score.lost) if str(score.corruption.effective) else ""),
                *(Cell(self.format(score.scores[name])) for name in names[1:]),
            ]
            for score in self.rows()
        ]
        heads = ["corruption", prediction_label(names[0]), self.lost_head, *names[1:]]
        return Table(heads, rows, [self.caption], f"{self.form.title}: {self.subject}")

    @property
    def caption(self) -> str:
        """Meaning of rates, levels and intervals."""
        return (
            f"{format_count(self.samples, 'sample')}, corrupted at evaluation only. Noise is normal, its standard "
            "deviation (std) in units of that of the modality's input on training data. Scores of a modality alone are "
            "over the samples that still have it. In brackets 95 % intervals."
        )

    def format(self, estimate: IntervalEstimate) -> str:
        """Text of a score."""
        if math.isnan(estimate.value):
            return "–"
        if math.isnan(estimate.low):
            return self.form.text(estimate.value)
        return estimate.percent if self.form.is_rate else str(estimate)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "subject": self.subject,
            "metric": self.metric,
            "samples": self.samples,
            "scores": [
                {
                    "missing": dict(row.corruption.effective.missing),
                    "noise": dict(row.corruption.effective.noise),
                    "scores": plain_values(row.scores),
                    "lost": plain_values(row.lost),
                }
                for row in self.rows()
            ],
        }


def measure_robustness(  # noqa: PLR0913  (one call says all of a model and its corruptions)
    model: MultimodalClassifier | ModelFunction,
    batches: Iterable[Any],
    missing: Mapping[str, Levels] | None = None,
    noise: Mapping[str, Levels] | None = None,
    *,
    training_batches: Iterable[Any] | None = None,
    method: Method | None = None,
    module: nn.Module | Sequence[nn.Module] | None = None,
    removal: RemovalOptions | None = None,
    task: Task | None = None,
    seed: int = 0,
    subject: str = "model",
) -> Robustness:
    """Score a model under missing and noisy modalities, at evaluation only.

    A single rate or level is there in all scores; of several, one sweep is made for each modality, with the others as
    they are. Draws are per sample, by the seed.

    Args:
        model: A :class:`bmlr.MultimodalClassifier`, such as one of :func:`bmlr.wrap`, whose missing modalities are
            absent ones, with features of zero; or a function from inputs by name to logits, shape (B, C).
        batches: Batches of :class:`bmlr.Batch` or pairs (inputs by modality, targets), iterable more than once.
        missing: Rates in [0, 1] at which samples lose a modality, by name.
        noise: Standard deviations of normal noise, by name, in units of that of the modality's input in
            ``training_batches``: one number over all entries. A level of s is a signal-to-noise ratio of −20 log₁₀ s
            decibels.
        training_batches: Training data, for the units of noise; None takes ``batches``.
        method: Method whose predictions count; None takes the model's logits.
        module: Module behind a function, or several, to switch to evaluation mode.
        removal: What replaces the input of a missing modality of a function: its mean by default.
        task: Task of a function; None is classification. A :class:`bmlr.MultimodalClassifier` has its own.
        seed: Seed of the draws.
        subject: Model and data, for captions.

    Raises:
        ValueError: If an argument does not fit the model or the batches.

    Example:
        >>> import torch, bmlr
        >>> _ = torch.manual_seed(0)
        >>> model = bmlr.MultimodalClassifier({"audio": torch.nn.Linear(4, 8), "video": torch.nn.Linear(6, 8)}, 3)
        >>> batches = [({"audio": torch.randn(9, 4), "video": torch.randn(9, 6)}, torch.arange(9) % 3)]
        >>> measured = measure_robustness(model, batches, missing={"audio": [0, 0.5, 1]}, noise={"video": 0.2})
        >>> [rate for rate, _ in measured.sweeps["missing audio"]]
        [0, 0.5, 1]
    """
    if iter(batches) is batches:
        raise ValueError("`batches` should be iterable more than once, such as a list or a DataLoader.")
    missing, noise = missing or {}, noise or {}
    if not (missing or noise):
        raise ValueError("`missing` or `noise` should name a modality. Found none.")
    if isinstance(model, MultimodalClassifier):
        if module is not None or removal is not None or task is not None:
            raise ValueError("`module`, `removal` and `task` are for a model given as a function.")
        predictor: _Predictor = _ClassifierPredictor(model, method)
    else:
        if method is not None:
            raise ValueError("`method` goes with a bmlr.MultimodalClassifier. Found a model given as a function.")
        predictor = _FunctionPredictor(model, batches, module, removal, task, seed)
    for argument, names in {"missing": missing, "noise": noise}.items():
        check_modalities(argument, names, predictor.modalities)
    scales = input_scales(batches if training_batches is None else training_batches, noise) if noise else {}
    scorer = _Scorer(predictor, batches, scales, seed)
    fixed = Corruption(_single(missing), _single(noise))
    sweeps: dict[str, list[tuple[float, CorruptedScore]]] = {}
    for kind, levels_of in {"missing": missing, "noise": noise}.items():
        for name, levels in levels_of.items():
            if isinstance(levels, Sequence):
                corrupted = [_added(fixed, kind, name, level) for level in levels]
                sweeps[f"{kind} {name}"] = [(x, scorer.score(c)) for x, c in zip(levels, corrupted, strict=True)]
    return Robustness(
        subject,
        scorer.metric,
        scorer.samples,
        scorer.score(Corruption()),
        scorer.score(fixed) if fixed.missing or fixed.noise else None,
        sweeps,
    )


def _single(levels: Mapping[str, Levels]) -> dict[str, float]:
    return {name: float(level) for name, level in levels.items() if not isinstance(level, Sequence)}


def _added(fixed: Corruption, kind: str, name: str, level: float) -> Corruption:
    missing, noise = dict(fixed.missing), dict(fixed.noise)
    (missing if kind == "missing" else noise)[name] = float(level)
    return Corruption(missing, noise)


class _ClassifierPredictor:
    """Predictions of a classifier; missing modalities are absent ones."""

    def __init__(self, model: MultimodalClassifier, method: Method | None) -> None:
        self._predictor = AbsentModalityPredictor(model, method)
        self.modalities, self.modules, self.task = model.modalities, self._predictor.modules, model.task

    def predict(self, batch: Batch, kept: Mapping[str, Tensor]) -> Prediction:
        """Predictions of a batch whose masks of presence say what is missing."""
        return self._predictor.predict(batch)


class _FunctionPredictor:
    """Logits of a function; inputs of missing modalities are replaced."""

    def __init__(
        self,
        model: ModelFunction,
        batches: Iterable[Any],
        module: nn.Module | Sequence[nn.Module] | None,
        removal: RemovalOptions | None,
        task: Task | None,
        seed: int,
    ) -> None:
        options = removal or RemovalOptions()
        self.modalities = tuple(options.modalities or first_modalities(batches))
        self.modules = modules_of(model, module)
        self.task = task
        self._model, self._replacements = model, make_replacements(self.modalities, batches, options, seed)
        self._device = device_of(self.modules) or torch.device("cpu")

    def predict(self, batch: Batch, kept: Mapping[str, Tensor]) -> Prediction:
        """Logits of a batch, inputs replaced where a mask is False."""
        moved = batch.to(self._device)
        inputs = dict(moved.inputs)
        for name, mask in kept.items():
            inputs[name] = chosen_inputs(mask, inputs[name], self._replacements.by_name[name](inputs[name]))
        logits = self._model(inputs)
        if self.task is None:
            self.task = Multiclass(logits.shape[1])
        return Prediction(logits, {})


_Predictor: TypeAlias = _ClassifierPredictor | _FunctionPredictor


class _Scorer:
    """Scores a model under corruptions, each once."""

    def __init__(
        self, predictor: _Predictor, batches: Iterable[Any], scales: Mapping[str, list[float]], seed: int
    ) -> None:
        self._predictor, self._batches, self._scales, self._seed = predictor, batches, scales, seed
        self._scores: dict[str, CorruptedScore] = {}
        self._clean = self._predict(Corruption())
        self.samples = len(self._clean.targets)
        task = self._clean.task
        self.metric = task.primary
        self._sign = 1.0 if task.larger_is_better else -1.0

    def score(self, corruption: Corruption) -> CorruptedScore:
        """The score under a corruption."""
        key = str(corruption.effective)
        if key not in self._scores:
            predicted = self._predict(corruption) if key else self._clean
            self._scores[key] = self._compare(corruption, predicted)
        return dataclasses.replace(self._scores[key], corruption=corruption)

    def _compare(self, corruption: Corruption, predicted: _Predicted) -> CorruptedScore:
        columns = predicted.columns
        if columns is None:  # a metric that is no mean over samples, such as AUROC: without intervals
            values, clean = predicted.values, self._clean.values
            scores = {name: IntervalEstimate(value, math.nan, math.nan) for name, value in values.items()}
            lost = self._sign * (clean["fused"] - values["fused"])
            return CorruptedScore(corruption, scores, IntervalEstimate(lost, math.nan, math.nan))
        clean_columns = self._clean.columns or {}
        means = ResampledMeans({**columns, "clean": clean_columns["fused"]}, n_resamples=1000, seed=self._seed)
        order = ("clean", "fused") if self._sign > 0 else ("fused", "clean")
        return CorruptedScore(corruption, {name: means.estimate(name) for name in columns}, means.difference(*order))

    @torch.no_grad()
    def _predict(self, corruption: Corruption) -> _Predicted:
        collected: list[tuple[Prediction, Batch]] = []
        with module_mode(*self._predictor.modules, training=False):
            for number, (batch, positions) in enumerate(_with_positions(self._batches)):
                check_batch(batch, self._predictor.modalities, number)
                kept = corruption.kept(batch, positions, self._seed)
                present = dict(batch.present or {})
                for name, mask in kept.items():
                    before = present.get(name)
                    present[name] = mask if before is None else mask & before.cpu()
                noisy = corruption.with_noise(batch, positions, self._scales, self._seed)
                corrupted = dataclasses.replace(noisy, present=present or None)
                prediction = self._predictor.predict(corrupted, kept)
                unimodal = {u: x.cpu() for u, x in prediction.unimodal_logits.items()}
                collected.append((Prediction(prediction.logits.cpu(), unimodal), corrupted))
        task = self._predictor.task
        if task is None or not any(len(batch) for _, batch in collected):
            raise ValueError("`batches` should hold at least one sample. Found none.")
        return _Predicted.join(collected, task)


@dataclasses.dataclass(frozen=True)
class _Predicted:
    """Predictions of all samples: logits (N, C) by name, targets, and masks of the samples they count for."""

    task: Task
    logits: dict[str, Tensor]
    targets: Tensor
    masks: dict[str, Tensor]

    @classmethod
    def join(cls, collected: Sequence[tuple[Prediction, Batch]], task: Task) -> _Predicted:
        logits = {"fused": torch.cat([prediction.logits for prediction, _ in collected])}
        masks = {"fused": torch.ones(len(logits["fused"]), dtype=torch.bool)}
        for name in collected[0][0].unimodal_logits:
            logits[name] = torch.cat([prediction.unimodal_logits[name] for prediction, _ in collected])
            masks[name] = torch.cat([_mask(batch, name) for _, batch in collected])
        return cls(task, logits, torch.cat([batch.targets.cpu() for _, batch in collected]), masks)

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray] | None:
        """Score of each sample by name, NaN where it does not count; None for a metric that is no mean over samples."""
        score = _SAMPLE_SCORES.get(self.task.primary)
        if score is None:
            return None
        has_target = self.task.has_target(self.targets)
        columns = {}
        for name, logits in self.logits.items():
            counted = self.masks[name] if has_target is None else self.masks[name] & has_target
            values = score(self.task, logits, self.targets).double()
            columns[name] = torch.where(counted, values, torch.nan).numpy()
        return columns

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """Primary metric by name; NaN without samples."""
        values = {}
        for name, logits in self.logits.items():
            metrics, mask = self.task.metrics(), self.masks[name]
            if mask.any():
                metrics.update(logits[mask], self.targets[mask])
            values[name] = float(metrics.compute()[self.task.primary]) if mask.any() else math.nan
        return values


def _hits(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    return task.predict(logits) == (targets.argmax(1) if targets.is_floating_point() else targets)


def _absolute_errors(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.double() - task.labels(targets).double()).abs().mean(1)


#: Metrics that are means over samples, so that they have intervals.
_SAMPLE_SCORES: dict[str, Callable[[Task, Tensor, Tensor], Tensor]] = {"accuracy": _hits, "mae": _absolute_errors}


def _mask(batch: Batch, name: str) -> Tensor:
    mask = (batch.present or {}).get(name)
    return torch.ones(len(batch), dtype=torch.bool) if mask is None else mask.cpu()


def _with_positions(batches: Iterable[Any]) -> Iterator[tuple[Batch, list[int]]]:
    """Batches with the positions of their samples, which draws depend on."""
    start = 0
    for batch in map(as_batch, batches):
        counted = list(range(start, start + len(batch)))
        yield batch, counted if batch.indices is None else batch.indices.tolist()
        start += len(batch)
