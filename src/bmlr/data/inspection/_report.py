"""Contents and faults of a data set."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bmlr._checks import check_integer
from bmlr._console import make_console
from bmlr.data._base import SPLITS, Modality, MultimodalData, Split, SplitName
from bmlr.data.inspection._batches import draw_indices, iterate_batches, present_mask, store_of, written_texts
from bmlr.data.inspection._statistics import InputReport, InputStatistics
from bmlr.data.inspection._traps import known_traps
from bmlr.data.store._plausibility import describe_counts, describe_size
from bmlr.data.store._store import REJECTED, read_rejected
from bmlr.data.store._targets import NumberRange, count_classes
from bmlr.tables import format_count

_MAX_NAMES = 5  # groups or classes named in a sentence


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """Statistics of one split.

    Attributes:
        samples: Number of samples.
        n_read: Number of samples whose inputs were read.
        counts: Number of samples by class or label; none for numbers.
        majority_rate: Fraction of the most frequent class, the accuracy of a constant answer; None without classes.
        numbers: Range of the targets, where they are numbers.
        groups: Number of groups; None without groups.
        inputs: Statistics of the inputs, by modality.
    """

    samples: int
    n_read: int
    counts: Mapping[str, int]
    majority_rate: float | None
    numbers: NumberRange | None
    groups: int | None
    inputs: Mapping[str, InputReport]


@dataclasses.dataclass(frozen=True)
class Leak:
    """Groups shared by two splits.

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
    """Inputs equal number for number, or texts equal word for word, in two splits.

    Attributes:
        modality: Name of the modality.
        splits: The two splits.
        samples: Number of samples with such an input, by split.
        compared: How they are equal: ``number for number`` or ``word for word``.
    """

    modality: str
    splits: tuple[str, str]
    samples: Mapping[str, int]
    compared: str = "number for number"


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Result of :func:`inspect_data`.

    Attributes:
        data: Name of the data set.
        protocol: Its protocol.
        classes: Names of the classes.
        modalities: Form of each modality.
        splits: Statistics of each split.
        leaks: Groups shared between splits.
        duplicates: Inputs shared between splits, among the samples read.
        rejected: Number of samples left out when the data was prepared; None if unknown.
        alarms: Faults that make results wrong: groups or inputs shared under ``clean``, values that are not finite,
            classes without a training sample, modalities with the same inputs.
        remarks: Further observations.
        traps: What is known to make results on this data set wrong, or not comparable.
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
    traps: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON."""
        return dataclasses.asdict(self)


def inspect_data(data: MultimodalData, *, samples: int | None = None, progress: bool = False) -> Inspection:
    """Read all splits of a data set and look for faults.

    They are read as in training, without random transforms.

    Args:
        data: The data set.
        samples: Number of samples per split whose inputs are read, drawn at random; None reads all. Counts, groups and
            durations are always those of all samples.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If a file of the data set is missing.
        ValueError: If the data set cannot be read, or a split breaks the interface of :class:`bmlr.data.Split`.

    Example:
        >>> import bmlr.data
        >>> inspection = inspect_data(bmlr.data.create("synthetic", num_classes=3, samples={"train": 200}), samples=100)
        >>> train = inspection.splits["train"]
        >>> train.samples, train.n_read, inspection.leaks, inspection.alarms
        (200, 100, (), ())
    """
    if samples is not None:
        check_integer("samples", samples, 1)
    data.prepare()
    splits = {name: data.split(name) for name in SPLITS}
    statistics: dict[SplitName, dict[str, InputStatistics]] = {}
    reports: dict[str, SplitReport] = {}
    indices = {name: draw_indices(np.arange(len(split)), samples or len(split), 0) for name, split in splits.items()}
    with progress_bar(sum(map(len, indices.values())), enabled=progress) as advance:
        for name, split in splits.items():
            if not len(split):
                raise ValueError(f"Split '{name}' of '{data.name}' should hold samples. It is empty.")
            data.task.check_targets(split.targets, len(split))
            statistics[name] = {modality: InputStatistics(form) for modality, form in data.modalities.items()}
            first = 0
            for batch in iterate_batches(data, name, split, indices[name]):
                positions = indices[name][first : first + len(batch)].tolist()
                for modality, inputs in statistics[name].items():
                    texts = written_texts(split, modality, positions)
                    inputs.add_batch(batch.inputs[modality].numpy(), present_mask(batch, modality), texts)
                first += len(batch)
                advance(len(batch))
            reports[name] = _report(data, split, statistics[name], len(indices[name]))
    leaks = _leaks(splits)
    duplicates = _duplicates(statistics)
    store = next((opened for split in splits.values() if (opened := store_of(split)) is not None), None)
    rejected = len(read_rejected(store.folder)) if store is not None and (store.folder / REJECTED).is_file() else None
    alarms, remarks = _sentences(data, reports, leaks, duplicates)
    alarms += _describe_equal(statistics)
    if rejected and store is not None:
        remarks.append(
            f"{format_count(rejected, 'sample was', 'samples were')} rejected in preparation, with reasons in "
            f"{store.folder / REJECTED}."
        )
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
        known_traps(data.name, sum(map(len, splits.values())), len(data.classes)),
    )


def _report(data: MultimodalData, split: Split, statistics: Mapping[str, InputStatistics], n_read: int) -> SplitReport:
    targets = split.targets.numpy()
    counts = count_classes(targets, data.classes)
    return SplitReport(
        samples=len(split),
        n_read=n_read,
        counts=counts,
        majority_rate=max(counts.values()) / len(split) if data.task.name == "multiclass" else None,
        numbers=NumberRange.of(targets) if data.task.name == "regression" else None,
        groups=None if split.groups is None else len(set(split.groups)),
        inputs={modality: inputs.report(_seconds(split, modality)) for modality, inputs in statistics.items()},
    )


def _seconds(split: Split, modality: str) -> list[float]:
    """Durations of a split's files; only a store knows them."""
    store, rows = store_of(split), getattr(split, "rows", None)
    if store is None or rows is None:
        return []
    durations = [store.samples[row].files.get(modality, {}).get("seconds") for row in rows]
    return [seconds for seconds in durations if seconds is not None]


def _leaks(splits: Mapping[SplitName, Split]) -> tuple[Leak, ...]:
    leaks = []
    for first, second in itertools.combinations(splits, 2):
        groups = {name: splits[name].groups or () for name in (first, second)}
        shared = set(groups[first]) & set(groups[second])
        if shared:
            samples = {name: sum(group in shared for group in members) for name, members in groups.items()}
            leaks.append(Leak((first, second), tuple(sorted(shared)), {str(k): v for k, v in samples.items()}))
    return tuple(leaks)


def _duplicates(statistics: Mapping[SplitName, Mapping[str, InputStatistics]]) -> tuple[Duplicates, ...]:
    duplicates = []
    for first, second in itertools.combinations(statistics, 2):
        for modality in statistics[first]:
            digests = {name: statistics[name][modality].digests for name in (first, second)}
            shared = set(digests[first]) & set(digests[second])
            if shared:
                samples = {str(name): sum(digest in shared for digest in inputs) for name, inputs in digests.items()}
                compared = _how(statistics[first][modality])
                duplicates.append(Duplicates(modality, (first, second), samples, compared))
    return tuple(duplicates)


def _describe_equal(statistics: Mapping[SplitName, Mapping[str, InputStatistics]]) -> list[str]:
    """Alarms on two modalities with the same inputs, such as two columns of one video."""
    alarms = []
    for name, by_modality in statistics.items():
        for first, second in itertools.combinations(by_modality, 2):
            inputs = set(by_modality[second].digests)
            equal = sum(digest in inputs for digest in by_modality[first].digests)
            if equal:
                where = f"{format_count(equal, 'sample')} of {name}"
                alarms.append(f"'{first}' and '{second}' are the same, {_how(by_modality[first])}, in {where}.")
    return alarms


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
        names = ", ".join(leak.groups[:_MAX_NAMES]) + (", …" if len(leak.groups) > _MAX_NAMES else "")
        shared_groups.append(
            f"LEAKAGE: {_both(leak.splits)} share {format_count(len(leak.groups), 'group')} ({names}), with "
            f"{_by_split(leak.samples)}"
            + (", though protocol 'clean' says that splits share none." if clean else f" (protocol '{data.protocol}').")
        )
    shared_groups += [
        f"LEAKAGE: the same '{duplicate.modality}', {duplicate.compared}, is in {_both(duplicate.splits)}: "
        f"{_by_split(duplicate.samples)}."
        for duplicate in duplicates
    ]
    if all(report.groups is None for report in reports.values()):
        remarks.append("No groups are known, so that leakage by group cannot be seen.")
    for name, report in reports.items():
        empty = [label for label, count in report.counts.items() if not count]
        if empty:
            shown = ", ".join(empty[:_MAX_NAMES]) + (", …" if len(empty) > _MAX_NAMES else "")
            (alarms if name == "train" else remarks).append(
                f"Split '{name}' has no sample of {len(empty)} of {len(report.counts)} classes: {shown}."
            )
        for modality, inputs in report.inputs.items():
            if inputs.nan or inputs.infinite:
                alarms.append(
                    f"'{modality}' of split '{name}' holds {inputs.nan} NaN and {inputs.infinite} infinite values."
                )
            if inputs.constant:
                remarks.append(
                    f"{format_count(inputs.constant, 'sample')} of split '{name}' with a constant '{modality}'."
                )
    remarks += _describe_targets(reports)
    remarks += getattr(data, "remarks", ())
    left_out = getattr(data, "left_out", None)
    if left_out:
        remarks.append(f"Protocol '{data.protocol}' leaves out {format_count(len(left_out), 'sample')}.")
    return alarms, remarks


def _describe_targets(reports: Mapping[str, SplitReport]) -> list[str]:
    """Remarks on small splits, on classes that look alike or have few samples, and on numbers that are all one."""
    counts: dict[str, int] = collections.Counter()
    for report in reports.values():
        counts.update(report.counts)
    sizes = list(filter(None, (describe_size(name, report.samples) for name, report in reports.items())))
    if not counts:
        constant = [name for name, report in reports.items() if report.numbers and report.numbers.std == 0]
        return [f"All targets of split '{name}' are {reports[name].numbers.mean:g}." for name in constant] + sizes  # type: ignore[union-attr]
    samples = sum(report.samples for report in reports.values())
    return [*describe_counts({"": counts}, {"": samples}), *sizes]


def _how(inputs: InputStatistics) -> str:
    return "word for word" if inputs.is_written else "number for number"


def _both(splits: Sequence[str]) -> str:
    return " and ".join(splits)


def _by_split(samples: Mapping[str, int]) -> str:
    return " and ".join(f"{format_count(count, 'sample')} of {name}" for name, count in samples.items())


@contextlib.contextmanager
def progress_bar(total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar.

    Yields:
        A function that advances it.
    """
    if not enabled:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress(console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=total)
        yield lambda count: progress.update(task, advance=count)
