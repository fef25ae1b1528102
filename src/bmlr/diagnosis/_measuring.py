"""Measure a model for a diagnosis."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmlr._checks import check_integer, check_unit_interval, nearest_name
from bmlr._random import preserved_random_state
from bmlr.diagnosis._diagnosis import Diagnosis, ModalityMeasures, PairMeasures
from bmlr.diagnosis._judge import Evidence, Thresholds
from bmlr.diagnosis._measures import (
    Bootstrap,
    accuracy_ratio,
    conditional_utilisation,
    recovered_share,
    shapley_values,
)
from bmlr.diagnosis._probe import ModalityGap
from bmlr.diagnosis._readings import Predict, Readings, collect
from bmlr.diagnosis._removal import Removal, RemovalOptions, make_reader
from bmlr.diagnosis._words import write_verdict
from bmlr.methods import Method
from bmlr.model import MultimodalClassifier
from bmlr.monitor import GradientMonitor, read_gradients, summarise_gradients


def diagnose(  # noqa: PLR0913  (one call says all of a model and its data)
    model: MultimodalClassifier | Predict,
    batches: Iterable[Any],
    *,
    method: Method | None = None,
    modalities: Sequence[str] | None = None,
    remove: Removal | None = None,
    baselines: Mapping[str, Tensor] | None = None,
    module: nn.Module | None = None,
    reference: Mapping[str, float] | None = None,
    probe: Mapping[str, ModalityGap] | None = None,
    gradients: GradientMonitor | Path | str | None = None,
    thresholds: Thresholds | None = None,
    resamples: int = 1000,
    draws: int = 16,
    pool: int = 512,
    seed: int = 0,
    subject: str = "the model",
) -> Diagnosis:
    """Measure the balance of a model's modalities and say which, if any, is undertrained.

    The model is read in evaluation mode and without gradients; modes, gradients and random streams are as before
    afterwards.

    A model of the library removes a modality as it treats an absent one: its features are zero. Any other model is
    given as a function, and a modality is removed by replacing its input: with zeros, with the mean input, with the
    inputs of other samples (``shuffle``, the mean of several draws in log space), or with a baseline of your own. Means
    and other samples come from ``batches``. Zeros and means can be unlike any real input. Shuffled inputs are real, but
    vote for their own class: few draws make the accuracy alone of a weak modality too low.

    Alone a low accuracy does not say whether a modality is undertrained or carries little information. That takes a
    comparison with training on it alone: ``reference``, or ``probe``, which looks at the encoders too.

    Args:
        model: A :class:`bmlr.MultimodalClassifier`; or any function from inputs by modality to logits of shape (B, C).
        batches: Batches of :class:`bmlr.Batch` or pairs (inputs by modality, targets), such as a DataLoader; of data
            the model was not trained on.
        method: The method a model of the library was trained by, whose predictions count.
        modalities: Names of the modalities, for a function; by default all inputs of the first batch. Further inputs
            are handed over as they are.
        remove: ``absent`` (models of the library, their default), ``zero``, ``mean`` (default for functions) or
            ``shuffle``.
        baselines: Stand-in for the input of a modality, of the shape of one sample, by name.
        module: The module behind a function, to be put into evaluation mode. Found by itself where the function is a
            module, is a method of one, or names one in its body.
        reference: Accuracy of a model trained on each modality alone, by name, on these samples or alike; for its
            uncertainty it is taken to be measured on as many samples as have the modality.
        probe: What :func:`probe_gap` or :func:`probe_gap_of` found.
        gradients: What a :class:`GradientMonitor` recorded, or its file or directory.
        thresholds: What the verdict takes as much or little.
        resamples: Resamples of the bootstrap.
        draws: Draws per sample of ``shuffle``.
        pool: Samples of each modality kept for ``shuffle``.
        seed: Seed of draws and resamples.
        subject: What is diagnosed, for the captions.

    Raises:
        ValueError: If an argument does not fit, or inputs, targets or logits are not what they should be.

    Example:
        >>> import torch
        >>> y = torch.arange(1000) % 2
        >>> audio, video = 2.0 * y[:, None] - 1, torch.zeros(1000, 1)
        >>> def predict(inputs):
        ...     score = inputs["audio"] + inputs["video"]
        ...     return torch.cat([-score, score], 1)
        >>> found = diagnose(predict, [({"audio": audio, "video": video}, y)], reference={"audio": 1.0, "video": 0.5})
        >>> found.verdict.status
        {'audio': 'balanced', 'video': 'uninformative'}
    """
    thresholds = thresholds or Thresholds()
    check_integer("resamples", resamples, 100)
    with preserved_random_state():
        reader = make_reader(
            model,
            batches,
            RemovalOptions(remove, baselines, draws, pool, seed),
            method=method,
            modalities=modalities,
            module=module,
        )
        readings = collect(reader, batches)
    _check_names("reference", reference, readings.modalities)
    _check_names("probe", probe, readings.modalities)
    for name, value in (reference or {}).items():
        check_unit_interval(f"reference['{name}']", value)
    return summarise(
        readings,
        Sources(
            subject,
            method=None if method is None else type(method).__name__,
            reference=dict(reference or {}),
            probe=dict(probe or {}),
            gradients=gradients,
        ),
        thresholds,
        resamples=resamples,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class Sources:
    """What is known beside the readings; see :func:`diagnose`.

    Attributes:
        subject: What is diagnosed, in words.
        method: Name of the method it was trained by.
        reference: Accuracy of a model trained on each modality alone.
        probe: Probe gaps.
        gradients: Where gradients were recorded.
        can_probe: Training alone can be had by a switch of the command line.
    """

    subject: str
    method: str | None = None
    reference: dict[str, float] = dataclasses.field(default_factory=dict)
    probe: dict[str, ModalityGap] = dataclasses.field(default_factory=dict)
    gradients: GradientMonitor | Path | str | None = None
    can_probe: bool = False


def summarise(readings: Readings, sources: Sources, thresholds: Thresholds, *, resamples: int, seed: int) -> Diagnosis:
    """From readings to a diagnosis; see :func:`diagnose`."""
    bootstrap = _resampled(readings, sources, resamples=resamples, level=thresholds.level, seed=seed)
    measures = _Measures(readings, bootstrap, sources, thresholds.margin)
    modalities = {u: measures.modality(u) for u in readings.modalities}
    rows = _rows_of(sources.gradients)
    summary = {u: found for u, found in summarise_gradients(rows).items() if u in modalities}
    verdict = write_verdict(
        {u: measures.evidence(u, found) for u, found in modalities.items()},
        thresholds,
        accuracy=bootstrap.estimate("full"),
        samples=len(readings),
        method=sources.method,
        missing=not all(bool(mask.all()) for mask in readings.present.values()),
        conflict={u: value for u, found in summary.items() if (value := found["conflict"]) is not None},
        can_probe=sources.can_probe,
        shuffled=readings.shuffled,
    )
    return Diagnosis(
        sources.subject,
        len(readings),
        bootstrap.estimate("full"),
        readings.majority_rate,
        readings.removal,
        {u: dataclasses.replace(found, status=verdict.status[u]) for u, found in modalities.items()},
        {f"{a}/{b}": measures.pair(a, b) for a, b in itertools.combinations(readings.modalities, 2)},
        summary,
        thresholds,
        verdict,
        list(rows),
    )


def _resampled(readings: Readings, sources: Sources, *, resamples: int, level: float, seed: int) -> Bootstrap:
    """Resampled means of everything: readings, probes (``probe:u:…``) and references (``reference:u``)."""
    bootstrap = Bootstrap(_columns(readings), resamples=resamples, level=level, seed=seed)
    for name, gap in sources.probe.items():
        seed += 1
        readouts = {"joint": gap.joint, "alone": gap.alone, "untrained": gap.untrained, "head": gap.head}
        columns = {kind: values.double().numpy() for kind, values in readouts.items()}
        found = Bootstrap(columns, resamples=resamples, level=level, seed=seed)
        bootstrap = bootstrap.beside(found, f"probe:{name}:")
    for name, rate in sources.reference.items():
        seed += 1
        count = max(int(readings.present[name].sum()), 1)
        hits = (np.arange(count) < round(rate * count)).astype(np.float64)
        found = Bootstrap({name: hits}, resamples=resamples, level=level, seed=seed)
        found.means[name] = rate
        bootstrap = bootstrap.beside(found, "reference:")
    return bootstrap


def _rows_of(gradients: GradientMonitor | Path | str | None) -> list[dict[str, float]]:
    if gradients is None:
        return []
    return gradients.rows if isinstance(gradients, GradientMonitor) else read_gradients(gradients)


def _columns(readings: Readings) -> dict[str, np.ndarray]:
    """Everything that is a mean over samples, one number per sample; NaN where a sample does not count."""
    everything, targets = readings.everything, readings.targets
    columns = {"full": _only(readings.predictions[everything] == targets)}
    correct = {s: (predicted == targets).double() for s, predicted in readings.predictions.items()}
    majority = int(readings.class_rates.argmax())
    no_input = (targets == majority).double()
    prior = readings.class_rates[targets].log()
    for kind, values, empty in (
        ("shapley_accuracy", correct, no_input),
        ("shapley_log_probability", dict(readings.log_probabilities), prior),
    ):
        known = {s: torch.where(readings.has_any(s), value, empty) for s, value in values.items()}
        columns |= {f"{kind}:{u}": _only(share) for u, share in shapley_values(known, empty).items()}
    for u in readings.modalities:
        predicted, _ = readings.alone(u)
        rest = everything - {u}
        can_lose = readings.can_lose(u)
        columns[f"alone:{u}"] = _only(predicted == targets, readings.present[u])
        columns[f"removal:{u}"] = _only(correct[frozenset({u})], readings.present[u])
        columns[f"with:{u}"] = _only(correct[everything], can_lose)
        columns[f"without:{u}"] = _only(correct[rest], can_lose)
        columns[f"changed:{u}"] = _only(readings.predictions[rest] != readings.predictions[everything], can_lose)
    for u, v in itertools.combinations(readings.modalities, 2):
        both = readings.present[u] & readings.present[v]
        difference = readings.alone(u)[1].exp() - readings.alone(v)[1].exp()
        columns[f"gap:{u}/{v}"] = _only(difference.abs(), both)
        columns[f"signed:{u}/{v}"] = _only(difference, both)
    return columns


def _only(values: Tensor, mask: Tensor | None = None) -> np.ndarray:
    values = values.double()
    found: np.ndarray = (values if mask is None else torch.where(mask, values, torch.nan)).numpy()
    return found


class _Measures:
    """Forms the measures from resampled means."""

    def __init__(self, readings: Readings, bootstrap: Bootstrap, sources: Sources, margin: float) -> None:
        self.readings, self.bootstrap = readings, bootstrap
        self.probe = probe = sources.probe
        self.chance = {u: _majority_rate(readings.targets[readings.present[u]]) for u in readings.modalities}
        chance = self.chance
        self.compared = [u for u in readings.modalities if u in sources.reference or u in probe]
        # A share of next to nothing is noise, which must not become what the others are held against.
        self.informative = [u for u in self.compared if self._attainable(u, bootstrap.means) >= chance[u] + margin]

    def modality(self, u: str) -> ModalityMeasures:
        """The measures of a modality."""
        estimate = self.bootstrap.estimate
        optional: dict[str, Any] = {}
        if u in self.compared:
            optional["trained_alone"] = estimate(lambda means: self._attainable(u, means))
            optional["recovered"] = estimate(lambda means: self._recovered(u, means))
            optional["prediction_share"] = estimate(lambda means: self._relative(u, means))
        if u in self.probe:
            for kind in ("joint", "alone", "untrained"):
                optional[f"probe_{kind}"] = estimate(f"probe:{u}:{kind}")
            optional["encoder_gap"] = estimate(lambda m: m[f"probe:{u}:alone"] - m[f"probe:{u}:joint"])
            optional["encoder_share"] = estimate(
                lambda m: recovered_share(m[f"probe:{u}:joint"], m[f"probe:{u}:alone"], m[f"probe:{u}:untrained"])
            )
        return ModalityMeasures(
            samples=int(self.readings.present[u].sum()),
            majority_rate=self.chance[u],
            alone=estimate(f"alone:{u}"),
            alone_by_removal=estimate(f"removal:{u}"),
            left_out=estimate(f"without:{u}"),
            drop=estimate(lambda m: m[f"with:{u}"] - m[f"without:{u}"]),
            utilisation=estimate(lambda m: conditional_utilisation(m[f"with:{u}"], m[f"without:{u}"])),
            changed=estimate(f"changed:{u}"),
            shapley_accuracy=estimate(f"shapley_accuracy:{u}"),
            shapley_log_probability=estimate(f"shapley_log_probability:{u}"),
            **optional,
        )

    def pair(self, u: str, v: str) -> PairMeasures:
        """The measures of a pair."""
        estimate = self.bootstrap.estimate
        return PairMeasures(
            samples=int((self.readings.present[u] & self.readings.present[v]).sum()),
            accuracy_ratio=estimate(lambda m: accuracy_ratio(m[f"alone:{u}"], m[f"alone:{v}"])),
            confidence_gap=estimate(f"gap:{u}/{v}"),
            signed_confidence_gap=estimate(f"signed:{u}/{v}"),
        )

    def evidence(self, u: str, found: ModalityMeasures) -> Evidence:
        """What the verdict on a modality rests on."""
        return Evidence(
            found.samples,
            found.majority_rate,
            found.alone,
            found.drop,
            self.bootstrap.estimate(lambda means: self._balance(u, means)),
            found.trained_alone,
            found.prediction_share,
            found.encoder_gap,
            found.encoder_share,
        )

    def _attainable(self, u: str, means: Mapping[str, float]) -> float:
        return means[f"probe:{u}:head" if u in self.probe else f"reference:{u}"]

    def _recovered(self, u: str, means: Mapping[str, float]) -> float:
        return recovered_share(means[f"alone:{u}"], self._attainable(u, means), self.chance[u])

    def _relative(self, u: str, means: Mapping[str, float]) -> float:
        """Relative to the best recovered modality, among those that training alone learns something of."""
        if u not in self.informative:
            return math.nan
        shares = [self._recovered(v, means) for v in self.informative]
        best = max((share for share in shares if math.isfinite(share)), default=math.nan)
        return self._recovered(u, means) / best if best > 0 else math.nan

    def _balance(self, u: str, means: Mapping[str, float]) -> float:
        above = {v: means[f"alone:{v}"] - self.chance[v] for v in self.readings.modalities}
        best = max((value for value in above.values() if math.isfinite(value)), default=math.nan)
        return above[u] / best if best > 0 else math.nan


def _majority_rate(targets: Tensor) -> float:
    return float(torch.bincount(targets).max()) / len(targets) if len(targets) else math.nan


def _check_names(argument: str, given: Mapping[str, Any] | None, modalities: Sequence[str]) -> None:
    for name in given or {}:
        if name not in modalities:
            raise ValueError(
                f"`{argument}` should name modalities among {list(modalities)}. Found '{name}'."
                f"{nearest_name(name, modalities)}"
            )
