"""What is in a data set, and what is wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bmlr._checks import check_integer, check_targets
from bmlr.batch import Batch
from bmlr.data._base import SPLITS, Modality, MultimodalData, Split, SplitName
from bmlr.data.store._store import REJECTED, Store, read_rejected

_AT_ONCE = 32  # samples in memory


_NAMED = 5  # groups that a sentence names


MOST_CLASSES = 40  # rows of a contact sheet


MOST_FRAMES = 4  # of a video in a contact sheet


@dataclasses.dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    least: float
    median: float
    most: float


@dataclasses.dataclass(frozen=True)
class InputReport:
    """One modality in one split, of the samples that were looked at.

    Attributes:
        missing: Share of the samples that lack it.
        least: Smallest value; None where there is none. NaN, infinity and the time steps that are padding are left out
            here and below.
        most: Largest value.
        mean: Mean of all values.
        deviation: Standard deviation of all values.
        nan: Number of values that are NaN.
        infinite: Number of values that are infinite.
        constant: Number of samples whose values are all the same: silence, a black image.
        steps: Number of time steps that are not padding; of sequences only.
        seconds: Length of the recordings or videos in seconds, of all samples, where it is known.
    """

    missing: float
    least: float | None
    most: float | None
    mean: float | None
    deviation: float | None
    nan: int
    infinite: int
    constant: int
    steps: Spread | None
    seconds: Spread | None


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        samples: Number of samples.
        looked_at: Number of those whose inputs were read.
        counts: Number of samples by class.
        majority_rate: Share of the most frequent class: the accuracy of always answering it.
        groups: Number of groups; None where none are known.
        inputs: What the inputs are, by modality.
    """

    samples: int
    looked_at: int
    counts: Mapping[str, int]
    majority_rate: float
    groups: int | None
    inputs: Mapping[str, InputReport]


@dataclasses.dataclass(frozen=True)
class Leak:
    """Groups that two splits share.

    Attributes:
        splits: The two splits.
        groups: The groups.
        samples: Number of samples of these groups, by split.
    """

    splits: tuple[str, str]
    groups: tuple[str, ...]
    samples: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Inputs that are the same, number for number, in two splits.

    Attributes:
        modality: Whose inputs.
        splits: The two splits.
        samples: Number of samples with such an input, by split.
    """

    modality: str
    splits: tuple[str, str]
    samples: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What :func:`inspect_data` has found.

    Attributes:
        data: Name of the data set.
        protocol: Its protocol.
        classes: Names of the classes.
        modalities: Form of each modality.
        splits: What is in each split.
        leaks: Groups shared between splits.
        duplicates: Inputs shared between splits, among the samples that were looked at.
        rejected: Number of samples left out when the data was prepared; None where it is not known.
        alarms: What makes results wrong: groups or inputs shared under ``clean``, values that are no numbers, classes
            without a training sample.
        remarks: What else should be known.
    """

    data: str
    protocol: str
    classes: tuple[str, ...]
    modalities: Mapping[str, Modality]
    splits: Mapping[str, SplitReport]
    leaks: tuple[Leak, ...]
    duplicates: tuple[Duplicates, ...]
    rejected: int | None
    alarms: tuple[str, ...]
    remarks: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        return dataclasses.asdict(self)


def inspect_data(data: MultimodalData, *, samples: int | None = None, progress: bool = False) -> Inspection:
    """Look through all parts of a data set, as training reads them but without random transforms.

    Args:
        data: The data set.
        samples: Inputs are read of at most so many samples per split, drawn at random; None reads all. Counts, groups
            and durations are always those of all samples.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If a file of the data set is missing.
        ValueError: If the data set cannot be read, or its splits are not what :class:`bmlr.data.Split` promises.

    Example:
        >>> import bmlr.data
        >>> found = inspect_data(bmlr.data.create("synthetic", num_classes=3, samples={"train": 200}), samples=100)
        >>> found.splits["train"].samples, found.splits["train"].looked_at, found.leaks, found.alarms
        (200, 100, (), ())
    """
    if samples is not None:
        check_integer("samples", samples, 1)
    data.prepare()
    splits = {name: data.split(name) for name in SPLITS}
    looks: dict[SplitName, dict[str, _Look]] = {}
    reports: dict[str, SplitReport] = {}
    chosen = {name: _chosen(len(split), samples) for name, split in splits.items()}
    with draw_bar(sum(map(len, chosen.values())), enabled=progress) as advance:
        for name, split in splits.items():
            if not len(split):
                raise ValueError(f"Split '{name}' of '{data.name}' should hold samples. It is empty.")
            check_targets(split.targets, len(split), len(data.classes))
            looks[name] = {modality: _Look(form.kind) for modality, form in data.modalities.items()}
            for batch in iterate_batches(data, name, split, chosen[name]):
                for modality, look in looks[name].items():
                    look.see(batch.inputs[modality].numpy(), present_mask(batch, modality))
                advance(len(batch))
            reports[name] = _report(data, split, looks[name], len(chosen[name]))
    leaks = _leaks(splits)
    duplicates = _duplicates(looks)
    store = next((found for split in splits.values() if (found := store_of(split)) is not None), None)
    rejected = len(read_rejected(store.folder)) if store is not None and (store.folder / REJECTED).is_file() else None
    alarms, remarks = _sentences(data, reports, leaks, duplicates)
    if rejected and store is not None:
        remarks.append(f"{_were(rejected)} rejected in preparation, with reasons in {store.folder / REJECTED}.")
    return Inspection(
        data.name,
        data.protocol,
        tuple(data.classes),
        dict(data.modalities),
        reports,
        leaks,
        duplicates,
        rejected,
        tuple(alarms),
        tuple(remarks),
    )


class _Look:
    """What is gathered of one modality in one split, batch by batch."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.samples = self.missing = self.nan = self.infinite = self.constant = self.count = 0
        self.least, self.most, self.mean, self.squares = np.inf, -np.inf, 0.0, 0.0
        self.steps: list[int] = []
        self.digests: list[bytes] = []

    def see(self, values: np.ndarray, there: np.ndarray) -> None:
        """The inputs (B, …) of a batch and which samples have them."""
        self.samples += len(values)
        self.missing += int((~there).sum())
        values = values[there]
        if not values.size:
            return
        flat = values.reshape(len(values), -1)
        self.nan += int(np.isnan(flat).sum())
        self.infinite += int(np.isinf(flat).sum())
        constant = (flat == flat[:, :1]).all(1)
        self.constant += int(constant.sum())
        # Silence is alike everywhere: that says nothing about where the samples come from.
        self.digests += [_digest(value) for value, same in zip(values, constant, strict=True) if not same]
        if self.kind == "sequence":
            real = (values != 0).any(-1)
            self.steps += real.sum(-1).tolist()
            flat = values[real]
        self._add(flat[np.isfinite(flat)].astype(np.float64))

    def _add(self, values: np.ndarray) -> None:
        """Take values into range, mean and sum of squared deviations (Chan et al., 1979)."""
        if not len(values):
            return
        mean = float(values.mean())
        total = self.count + len(values)
        shift = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count = total
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    def report(self, seconds: Sequence[float]) -> InputReport:
        """What was found."""
        known = self.count > 0
        return InputReport(
            missing=self.missing / self.samples,
            least=self.least if known else None,
            most=self.most if known else None,
            mean=self.mean if known else None,
            deviation=float(np.sqrt(self.squares / self.count)) if known else None,
            nan=self.nan,
            infinite=self.infinite,
            constant=self.constant,
            steps=_spread(self.steps),
            seconds=_spread(seconds),
        )


def _digest(values: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _spread(numbers: Sequence[float]) -> Spread | None:
    if not len(numbers):
        return None
    return Spread(float(min(numbers)), float(np.median(numbers)), float(max(numbers)))


def _chosen(count: int, samples: int | None) -> np.ndarray:
    return draw_indices(np.arange(count), count if samples is None else samples, 0)


def draw_indices(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most ``count`` of the positions, in their order."""
    if len(positions) <= count:
        return positions
    return np.sort(np.random.default_rng(seed).choice(positions, count, replace=False))


def iterate_batches(data: MultimodalData, name: SplitName, split: Split, positions: np.ndarray) -> Iterator[Batch]:
    """Batches of a split, checked to be what a split promises."""
    for start in range(0, len(positions), _AT_ONCE):
        indices = positions[start : start + _AT_ONCE].tolist()
        batch = split.batch(indices)
        where = f"Split '{name}' of '{data.name}'"
        if set(batch.inputs) != set(data.modalities):
            raise ValueError(f"{where} should give {list(data.modalities)}. Found {list(batch.inputs)}.")
        for modality, values in batch.inputs.items():
            if len(values) != len(indices):
                raise ValueError(f"{where} should give {len(indices)} of '{modality}' as asked. Found {len(values)}.")
        if not torch.equal(batch.targets, split.targets[indices]):
            raise ValueError(f"{where} gives other targets in a batch than its `targets` at the same positions.")
        for modality, form in data.modalities.items():
            found, fixed = tuple(batch.inputs[modality].shape[1:]), int(form.kind in {"sequence", "frames"})
            if len(found) != len(form.shape) or found[fixed:] != tuple(form.shape[fixed:]):  # T may differ
                raise ValueError(
                    f"{where} should give '{modality}' of shape {tuple(form.shape)}, as `modalities` says. "
                    f"Found {found}."
                )
        yield batch


def joined(batches: Sequence[np.ndarray]) -> np.ndarray:
    """The inputs of several batches in one array; where their time steps differ in number, zeros are added."""
    longest = max(values.shape[1] for values in batches)
    padded = [
        np.pad(values, [(0, 0), (0, longest - values.shape[1])] + [(0, 0)] * (values.ndim - 2)) for values in batches
    ]
    return np.concatenate(padded)


def present_mask(batch: Batch, modality: str) -> np.ndarray:
    """Which samples of a batch have the modality."""
    mask = (batch.present or {}).get(modality)
    return np.ones(len(batch), dtype=bool) if mask is None else mask.numpy()


def store_of(split: Split) -> Store | None:
    store = getattr(split, "store", None)
    return store if isinstance(store, Store) else None


def _seconds(split: Split, modality: str) -> list[float]:
    """Durations of a split's files, where it is made from a store, which knows them."""
    store, rows = store_of(split), getattr(split, "rows", None)
    if store is None or rows is None:
        return []
    found = [store.samples[row].files.get(modality, {}).get("seconds") for row in rows]
    return [seconds for seconds in found if seconds is not None]


def _report(data: MultimodalData, split: Split, looks: Mapping[str, _Look], looked_at: int) -> SplitReport:
    counts = torch.bincount(split.targets, minlength=len(data.classes)).tolist()
    return SplitReport(
        samples=len(split),
        looked_at=looked_at,
        counts=dict(zip(data.classes, counts, strict=True)),
        majority_rate=max(counts) / len(split),
        groups=None if split.groups is None else len(set(split.groups)),
        inputs={modality: look.report(_seconds(split, modality)) for modality, look in looks.items()},
    )


def _leaks(splits: Mapping[SplitName, Split]) -> tuple[Leak, ...]:
    leaks = []
    for first, second in itertools.combinations(splits, 2):
        groups = {name: splits[name].groups or () for name in (first, second)}
        shared = set(groups[first]) & set(groups[second])
        if shared:
            samples = {name: sum(group in shared for group in members) for name, members in groups.items()}
            leaks.append(Leak((first, second), tuple(sorted(shared)), {str(k): v for k, v in samples.items()}))
    return tuple(leaks)


def _duplicates(looks: Mapping[SplitName, Mapping[str, _Look]]) -> tuple[Duplicates, ...]:
    found = []
    for first, second in itertools.combinations(looks, 2):
        for modality in looks[first]:
            digests = {name: looks[name][modality].digests for name in (first, second)}
            shared = set(digests[first]) & set(digests[second])
            if shared:
                samples = {str(name): sum(digest in shared for digest in own) for name, own in digests.items()}
                found.append(Duplicates(modality, (first, second), samples))
    return tuple(found)


def _sentences(
    data: MultimodalData,
    reports: Mapping[str, SplitReport],
    leaks: Sequence[Leak],
    duplicates: Sequence[Duplicates],
) -> tuple[list[str], list[str]]:
    """Alarms and remarks."""
    alarms: list[str] = []
    remarks: list[str] = []
    clean = data.protocol == "clean"
    shared_groups = alarms if clean else remarks
    for leak in leaks:
        names = ", ".join(leak.groups[:_NAMED]) + (", …" if len(leak.groups) > _NAMED else "")
        shared_groups.append(
            f"LEAKAGE: {_both(leak.splits)} share {_count(len(leak.groups), 'group')} ({names}), with "
            f"{_by_part(leak.samples)}"
            + (", though protocol 'clean' says that splits share none." if clean else f" (protocol '{data.protocol}').")
        )
    shared_groups += [
        f"LEAKAGE: the same '{found.modality}', number for number, is in {_both(found.splits)}: "
        f"{_by_part(found.samples)}."
        for found in duplicates
    ]
    if all(report.groups is None for report in reports.values()):
        remarks.append("No groups are known, so that leakage by group cannot be seen.")
    for name, report in reports.items():
        empty = [label for label, count in report.counts.items() if not count]
        if empty:
            shown = ", ".join(empty[:_NAMED]) + (", …" if len(empty) > _NAMED else "")
            (alarms if name == "train" else remarks).append(
                f"Split '{name}' has no sample of {len(empty)} of {len(report.counts)} classes: {shown}."
            )
        for modality, found in report.inputs.items():
            if found.nan or found.infinite:
                alarms.append(
                    f"'{modality}' of split '{name}' holds {found.nan} NaN and {found.infinite} infinite values."
                )
            if found.constant:
                remarks.append(f"{_count(found.constant, 'sample')} of split '{name}' with a constant '{modality}'.")
    left_out = getattr(data, "left_out", None)
    if left_out:
        remarks.append(f"Protocol '{data.protocol}' leaves out {_count(len(left_out), 'sample')}.")
    return alarms, remarks


def _both(splits: Sequence[str]) -> str:
    return " and ".join(splits)


def _by_part(samples: Mapping[str, int]) -> str:
    return " and ".join(f"{_count(count, 'sample')} of {name}" for name, count in samples.items())


def _were(samples: int) -> str:
    return f"{_count(samples, 'sample')} {'was' if samples == 1 else 'were'}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@contextlib.contextmanager
def draw_bar(total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields what moves it on."""
    if not enabled:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=total)
        yield lambda count: progress.update(task, advance=count)
