"""Diagnosis of any model: from predictions to measures and the verdict."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from bmlr._checks import check_unit_interval, nearest_name
from bmlr._random import preserved_random_state
from bmlr.diagnosis._diagnosis import Diagnosis, ModalityMeasures, PairMeasures
from bmlr.diagnosis._judge import Evidence, Thresholds
from bmlr.diagnosis._predictions import Predictions, collect_predictions
from bmlr.diagnosis._removal import ModelFunction, make_predictor
from bmlr.diagnosis._replacements import RemovalOptions
from bmlr.diagnosis._resampling import ResampledMeans
from bmlr.diagnosis._verdict import Context, write_verdict
from bmlr.diagnosis.measures import accuracy_ratio, conditional_utilisation, recovered_fraction
from bmlr.diagnosis.probes import ProbeResult
from bmlr.functional import shapley_values
from bmlr.methods import Method
from bmlr.model import MultimodalClassifier
from bmlr.monitor import GradientMonitor, read_gradients, summarise_gradients

#: By modality: the accuracy of a model trained on it alone, or probes of its encoder.
References: TypeAlias = Mapping[str, float | ProbeResult]


def diagnose(  # noqa: PLR0913  (one call says all of a model and its data)
    model: MultimodalClassifier | ModelFunction,
    batches: Iterable[Any],
    *,
    method: Method | None = None,
    module: nn.Module | Sequence[nn.Module] | None = None,
    removal: RemovalOptions | None = None,
    reference: References | None = None,
    gradients: GradientMonitor | Path | str | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    subject: str = "the model",
) -> Diagnosis:
    """Measure the balance of a model's modalities and name the undertrained ones.

    The model is evaluated without gradients; modes, gradients and random states are restored afterwards.

    A low accuracy alone does not tell an undertrained modality from an uninformative one. ``reference`` does, by
    comparison with training on one modality; probes also tell whether the encoder is behind.

    Args:
        model: A :class:`bmlr.MultimodalClassifier`; or any function from inputs by modality to logits of shape (B, C).
        batches: Batches of :class:`bmlr.Batch` or pairs (inputs by modality, targets), such as a DataLoader; of data
            the model was not trained on.
        method: The method that trained a model of the library and makes its predictions.
        module: The module behind a function, or several, switched to evaluation mode; an empty list for a function
            without. A function that is a module itself needs none.
        removal: Removal of modalities. By default a model of the library gets features of zero, as for an absent
            modality, and a function the mean input of ``batches``.
        reference: Accuracy of a model trained on each modality alone, on these samples or similar ones; or its
            :class:`bmlr.diagnosis.probes.ProbeResult`. An accuracy gets the uncertainty of as many samples as have
            the modality.
        gradients: A :class:`bmlr.monitor.GradientMonitor`, or its file or directory.
        thresholds: Limits of the verdict.
        seed: Seed of draws and resamples.
        subject: Description of the model, for captions.

    Raises:
        ValueError: If an argument does not fit, or inputs, targets or logits are invalid.

    Example:
        >>> import torch
        >>> y = torch.arange(1000) % 2
        >>> audio, video = 2.0 * y[:, None] - 1, torch.zeros(1000, 1)
        >>> def predict(inputs):
        ...     score = inputs["audio"] + inputs["video"]
        ...     return torch.cat([-score, score], 1)
        >>> batches = [({"audio": audio, "video": video}, y)]
        >>> diagnosis = diagnose(predict, batches, module=[], reference={"audio": 1.0, "video": 0.5})
        >>> diagnosis.verdict.status
        {'audio': 'balanced', 'video': 'uninformative'}
    """
    with preserved_random_state():
        predictor = make_predictor(model, batches, removal, method=method, module=module, seed=seed)
        predictions = collect_predictions(predictor, batches)
    background = Background(
        subject,
        method=None if method is None else type(method).__name__,
        reference=reference or {},
        gradients=gradients,
    )
    return summarise(predictions, background, thresholds or Thresholds(), seed=seed)


@dataclasses.dataclass(frozen=True)
class Background:
    """Information beside the predictions; see :func:`diagnose`.

    Attributes:
        subject: Description of the model.
        method: Name of the method that trained it.
        reference: Accuracies or probes of training alone.
        gradients: Recording of gradients.
        can_probe: The advice may name the switch ``--probe``.
    """

    subject: str
    method: str | None = None
    reference: References = dataclasses.field(default_factory=dict)
    gradients: GradientMonitor | Path | str | None = None
    can_probe: bool = False

    @property
    def probes(self) -> dict[str, ProbeResult]:
        """References by probes."""
        return {u: value for u, value in self.reference.items() if isinstance(value, ProbeResult)}

    @property
    def accuracies(self) -> dict[str, float]:
        """References by accuracy."""
        return {u: value for u, value in self.reference.items() if not isinstance(value, ProbeResult)}


def summarise(predictions: Predictions, background: Background, thresholds: Thresholds, *, seed: int) -> Diagnosis:
    """The diagnosis of predictions."""
    _check_reference(background, predictions.modalities)
    means = _resample(predictions, background, thresholds, seed)
    computer = _MeasureComputer(predictions, means, background, thresholds.margin)
    modalities = {u: computer.modality(u) for u in predictions.modalities}
    rows = _gradient_rows(background.gradients)
    gradients = {u: summary for u, summary in summarise_gradients(rows).items() if u in modalities}
    fused = means.estimate("fused")
    verdict = write_verdict(
        {u: computer.evidence(u, measures) for u, measures in modalities.items()},
        thresholds,
        Context(
            fused,
            len(predictions),
            method=background.method,
            missing=not all(bool(mask.all()) for mask in predictions.present.values()),
            conflict={u: cosine for u, summary in gradients.items() if (cosine := summary["conflict"]) is not None},
            can_probe=background.can_probe,
            shuffled=predictions.shuffled,
        ),
    )
    return Diagnosis(
        background.subject,
        len(predictions),
        fused,
        predictions.majority_rate,
        predictions.removal,
        {u: dataclasses.replace(measures, status=verdict.status[u]) for u, measures in modalities.items()},
        {f"{u}/{v}": computer.pair(u, v) for u, v in itertools.combinations(predictions.modalities, 2)},
        gradients,
        thresholds,
        verdict,
        list(rows),
    )


def _check_reference(background: Background, modalities: Sequence[str]) -> None:
    for name in background.reference:
        if name not in modalities:
            raise ValueError(
                f"`reference` should name modalities among {list(modalities)}. Found '{name}'."
                f"{nearest_name(name, modalities)}"
            )
    for name, value in background.accuracies.items():
        check_unit_interval(f"reference['{name}']", value)


def _resample(predictions: Predictions, background: Background, thresholds: Thresholds, seed: int) -> ResampledMeans:
    """Resampled means of predictions, probes (``probe:u:…``) and accuracies of training alone (``reference:u``)."""
    options: dict[str, Any] = {"n_resamples": thresholds.n_resamples, "level": thresholds.level}
    means = ResampledMeans(_columns(predictions), seed=seed, **options)
    for name, probe in background.probes.items():
        seed += 1  # independent resamples: probes may be read on other samples
        hits = {kind: getattr(probe, kind) for kind in ("joint", "alone", "untrained", "trained_alone")}
        columns = {kind: values.double().numpy() for kind, values in hits.items()}
        means.add(ResampledMeans(columns, seed=seed, **options), f"probe:{name}:")
    for name, rate in background.accuracies.items():
        seed += 1
        count = max(int(predictions.present[name].sum()), 1)
        column = (np.arange(count) < round(rate * count)).astype(np.float64)
        resampled = ResampledMeans({name: column}, seed=seed, **options)
        resampled.means[name] = rate  # not rounded to a number of hits
        means.add(resampled, "reference:")
    return means


def _gradient_rows(gradients: GradientMonitor | Path | str | None) -> list[dict[str, float]]:
    if gradients is None:
        return []
    return gradients.rows if isinstance(gradients, GradientMonitor) else read_gradients(gradients)


def _columns(predictions: Predictions) -> dict[str, np.ndarray]:
    """Values per sample of each measure; NaN excludes a sample."""
    everything, targets = predictions.all_modalities, predictions.targets
    columns = {"fused": _column(predictions.classes[everything] == targets)}
    correct = {s: (classes == targets).double() for s, classes in predictions.classes.items()}
    # Without any modality the model is taken to know the class rates.
    majority = int(predictions.class_rates.argmax())
    for kind, values, empty in (
        ("shapley_accuracy", correct, (targets == majority).double()),
        ("shapley_log_probability", dict(predictions.log_probabilities), predictions.class_rates[targets].log()),
    ):
        value_of = {s: torch.where(predictions.has_any(s), value, empty) for s, value in values.items()}
        columns |= {f"{kind}:{u}": _column(value) for u, value in shapley_values(value_of, empty).items()}
    for u in predictions.modalities:
        classes, _ = predictions.alone(u)
        remaining = everything - {u}
        mask = predictions.has_another(u)
        columns[f"alone:{u}"] = _column(classes == targets, predictions.present[u])
        columns[f"removal:{u}"] = _column(correct[frozenset({u})], predictions.present[u])
        columns[f"with:{u}"] = _column(correct[everything], mask)
        columns[f"without:{u}"] = _column(correct[remaining], mask)
        columns[f"changed:{u}"] = _column(predictions.classes[remaining] != predictions.classes[everything], mask)
    for u, v in itertools.combinations(predictions.modalities, 2):
        has_both = predictions.present[u] & predictions.present[v]
        difference = predictions.alone(u)[1].exp() - predictions.alone(v)[1].exp()
        columns[f"gap:{u}/{v}"] = _column(difference.abs(), has_both)
        columns[f"signed:{u}/{v}"] = _column(difference, has_both)
    return columns


def _column(values: Tensor, mask: Tensor | None = None) -> np.ndarray:
    values = values.double()
    column: np.ndarray = (values if mask is None else torch.where(mask, values, torch.nan)).numpy()
    return column


class _MeasureComputer:
    """Computes measures from resampled means."""

    def __init__(self, predictions: Predictions, means: ResampledMeans, background: Background, margin: float) -> None:
        self.predictions, self.means = predictions, means
        self.probes = background.probes
        self.chance = {u: _majority_rate(predictions.targets[predictions.present[u]]) for u in predictions.modalities}
        self.referenced = [u for u in predictions.modalities if u in background.reference]
        # A fraction of almost nothing is noise, and must not become the standard of the other modalities.
        self.informative = [u for u in self.referenced if self._attainable(u, means.means) >= self.chance[u] + margin]

    def modality(self, u: str) -> ModalityMeasures:
        """The measures of a modality."""
        estimate = self.means.estimate
        optional: dict[str, Any] = {}
        if u in self.referenced:
            optional["trained_alone"] = estimate(self._attainable_name(u))
            optional["recovered_fraction"] = estimate(lambda m: self._recovered(u, m))
            optional["relative_recovery"] = estimate(lambda m: self._relative_recovery(u, m))
        if u in self.probes:
            joint, alone, untrained = (f"probe:{u}:{kind}" for kind in ("joint", "alone", "untrained"))
            optional["probe_joint"] = estimate(joint)
            optional["probe_alone"] = estimate(alone)
            optional["probe_untrained"] = estimate(untrained)
            optional["encoder_gap"] = self.means.difference(alone, joint)
            optional["encoder_fraction"] = estimate(lambda m: recovered_fraction(m[joint], m[alone], m[untrained]))
        return ModalityMeasures(
            samples=int(self.predictions.present[u].sum()),
            majority_rate=self.chance[u],
            alone=estimate(f"alone:{u}"),
            alone_by_removal=estimate(f"removal:{u}"),
            without=estimate(f"without:{u}"),
            drop=self.means.difference(f"with:{u}", f"without:{u}"),
            utilisation=estimate(lambda m: conditional_utilisation(m[f"with:{u}"], m[f"without:{u}"])),
            changed_rate=estimate(f"changed:{u}"),
            shapley_accuracy=estimate(f"shapley_accuracy:{u}"),
            shapley_log_probability=estimate(f"shapley_log_probability:{u}"),
            **optional,
        )

    def pair(self, u: str, v: str) -> PairMeasures:
        """The measures of a pair."""
        estimate = self.means.estimate
        return PairMeasures(
            samples=int((self.predictions.present[u] & self.predictions.present[v]).sum()),
            accuracy_ratio=estimate(lambda m: accuracy_ratio(m[f"alone:{u}"], m[f"alone:{v}"])),
            confidence_gap=estimate(f"gap:{u}/{v}"),
            signed_confidence_gap=estimate(f"signed:{u}/{v}"),
        )

    def evidence(self, u: str, measures: ModalityMeasures) -> Evidence:
        """The evidence on a modality."""
        return Evidence(
            measures.samples,
            measures.majority_rate,
            measures.alone,
            measures.drop,
            self.means.estimate(lambda m: self._balance(u, m)),
            measures.trained_alone,
            measures.relative_recovery,
            measures.encoder_gap,
            measures.encoder_fraction,
        )

    def _attainable(self, u: str, means: Mapping[str, float]) -> float:
        return means[self._attainable_name(u)]

    def _attainable_name(self, u: str) -> str:
        """Name of the mean that is the accuracy after training alone."""
        return f"probe:{u}:trained_alone" if u in self.probes else f"reference:{u}"

    def _recovered(self, u: str, means: Mapping[str, float]) -> float:
        return recovered_fraction(means[f"alone:{u}"], self._attainable(u, means), self.chance[u])

    def _relative_recovery(self, u: str, means: Mapping[str, float]) -> float:
        """Recovery relative to the best recovered of the informative modalities."""
        if u not in self.informative:
            return math.nan
        fractions = [self._recovered(v, means) for v in self.informative]
        best = max((fraction for fraction in fractions if math.isfinite(fraction)), default=math.nan)
        return self._recovered(u, means) / best if best > 0 else math.nan

    def _balance(self, u: str, means: Mapping[str, float]) -> float:
        """Accuracy alone above chance, relative to the best modality."""
        above = {v: means[f"alone:{v}"] - self.chance[v] for v in self.predictions.modalities}
        best = max((value for value in above.values() if math.isfinite(value)), default=math.nan)
        return above[u] / best if best > 0 else math.nan


def _majority_rate(targets: Tensor) -> float:
    return float(torch.bincount(targets).max()) / len(targets) if len(targets) else math.nan
