"""Plausibility of labels and samples, one check for every data set.

Labels are looked at before any file is read (:func:`check_labels`), numbers of samples and repeated files once the
samples are stored (:func:`describe_counts`, :func:`describe_repeats`).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
import statistics
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from bmlr.data.store._samples import SourceSample, StoredSample
from bmlr.data.store._targets import SEPARATOR, TargetForm, TaskName, read_number
from bmlr.tables import format_count

_MAX_NAMES = 5  # named in a sentence
_FEW = 2  # samples of a class that can hardly be learnt
_SMALL_SPLIT = 50  # samples, below which a single one is two points or more
_SMALL_TABLE = 10  # samples, below which as many labels are nothing odd
_FEW_NUMBERS = 5  # different targets that may be classes
_FAR = 20  # interquartile ranges from the median, where codes such as -999 are
_MAX_SIZE = 30  # of targets; a network begins near 0 and learns larger ones late
_MISSING = {
    "", "nan", "none", "null", "nil", "n/a", "na", "<na>", "#n/a", "nat", "?", "-", "--", "missing",
    "unknown", "unlabeled", "unlabelled", "not labeled", "not labelled", "no label", "not available", "undefined",
    "tbd", "todo", "#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!",
}  # fmt: skip
_JOINERS = "\u200c\u200d"  # invisible, but words of Persian and Indic languages need them
_NAMES = {"train": "training", "val": "validation", "test": "test"}


def clean_text(text: str) -> str:
    r"""A name as it can be shown and compared.

    Letters are composed (NFC), spaces single and none at the ends, invisible characters removed (control characters,
    marks of direction), and bytes that are no UTF-8 written as ``\xe9``.

    Example:
        >>> clean_text("cafe\u0301 \u200e "), clean_text("caf\udce9")
        ('café', 'caf\\xe9')
    """
    spaced = " ".join(unicodedata.normalize("NFC", as_text(text)).split())
    visible = (c for c in spaced if c in _JOINERS or unicodedata.category(c) not in {"Cc", "Cf"})
    return "".join(visible).strip()


def as_text(name: str) -> str:
    r"""Write bytes that are no UTF-8 as ``\xe9``.

    No file of text could hold them.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_labels(
    samples: Sequence[SourceSample], source: object, task: TaskName = "multiclass", *, join_variants: bool = False
) -> tuple[list[SourceSample], list[str]]:
    """Check that labels name classes.

    Args:
        samples: The samples as their source lists them.
        source: The table or folder, for messages.
        task: ``multiclass``, or ``multilabel`` where a sample has several labels.
        join_variants: Take labels that differ by case, spaces, ``_`` or ``-`` only as one class; otherwise they are
            named in a note.

    Returns:
        The samples with clean labels and groups, those without a label marked as such, and notes, a sentence each.

    Raises:
        ValueError: If the labels are scores, or nearly as many as the samples.
    """

    def labels_of(sample: SourceSample) -> list[str]:
        return TargetForm(task).names(sample.label) if SEPARATOR in sample.label else [sample.label]

    cleaned, notes = _clean_names(samples)
    spellings: dict[str, set[str]] = collections.defaultdict(set)
    for index, sample in enumerate(cleaned):
        labels = {label: clean_text(label) for label in labels_of(sample)}
        text = SEPARATOR.join(dict.fromkeys(labels.values())) or (SEPARATOR if SEPARATOR in sample.label else "")
        cleaned[index] = dataclasses.replace(sample, label=text)
        for before, after in labels.items() if sample.problem is None else ():
            spellings[after].add(before)
    if joined := [label for label, texts in spellings.items() if len(texts) > 1]:
        notes.append(f"Warning: spellings that look alike are taken as one class: {_listed(joined)}.")
    missing = {label for label in spellings if label.casefold() in _MISSING} | _missing_number(spellings, notes)
    cleaned = [_mark_missing(sample, missing.intersection(labels_of(sample))) for sample in cleaned]
    if unlabelled := sum(sample.unlabelled for sample in cleaned):
        words = _listed(sorted(filter(None, missing)))
        notes.append(
            f"Warning: {unlabelled} of {len(cleaned)} samples have no label{words and f' ({words})'} and are left out."
            + (" If that is a class, give it another name." if words else "")
        )
    counts = collections.Counter(label for s in cleaned if s.problem is None for label in labels_of(s))
    _refuse_scores(counts, source)
    if join_variants:
        names = {v: group[0] for group in _variants(counts) for v in group[1:]}
        cleaned = [dataclasses.replace(sample, label=names.get(sample.label, sample.label)) for sample in cleaned]
        notes += [f"Labels {_listed([v, name])} are taken as one class, '{name}'." for v, name in names.items()]
    return cleaned, notes


def check_numbers(samples: Sequence[SourceSample], source: object) -> tuple[list[SourceSample], list[str]]:
    """Check that targets are numbers that can be learnt.

    Args:
        samples: The samples as their source lists them, with the target as label.
        source: The table, for messages.

    Returns:
        The samples, those without a target marked as such and those whose target is no finite number with a problem;
        and notes, a sentence each.

    Raises:
        ValueError: If all targets are one number.
    """
    cleaned, notes = _clean_names(samples)
    texts = [clean_text(sample.label) for sample in cleaned]
    commas = any("," in text for text in texts)
    mixed = commas and any("." in text for text in texts)  # a comma may be one between thousands then
    values: list[float] = []
    for index, (sample, text) in enumerate(zip(cleaned, texts, strict=True)):
        value = None if mixed and "," in text else read_number(text)
        marked = _mark_missing(sample, {text} if text.casefold() in _MISSING else set(), "target")
        if marked.problem is None and (value is None or not math.isfinite(value)):
            hint = " Write 1234.5, without commas" if mixed and "," in text else ""
            reason = f"column 'target' should hold a number. It holds {text!r}.{hint}"
            marked = dataclasses.replace(sample, problem=f"{_row_of(sample)}{reason}")
        elif marked.problem is None and value is not None:
            values.append(value)
            marked = dataclasses.replace(sample, label=repr(value))
        cleaned[index] = marked
    if commas and not mixed:
        example = next(text for text in texts if "," in text)
        notes.append(f"Commas in the targets are decimal: {example} is {example.replace(',', '.')}.")
    if missing := sum(sample.unlabelled for sample in cleaned):
        notes.append(f"Warning: {missing} of {len(cleaned)} samples have no target and are left out.")
    if values and min(values) == max(values):
        raise ValueError(f"The targets of {source} are all {values[0]:g}, so that there is nothing to predict.")
    return cleaned, notes + _describe_numbers(values)


def _describe_numbers(values: Sequence[float]) -> list[str]:
    """Notes on targets that may be classes, codes for missing ones, or in an unfit unit."""
    distinct = sorted(set(values))
    if (
        len(values) >= _SMALL_TABLE
        and len(distinct) <= _FEW_NUMBERS
        and all(value == round(value) for value in distinct)
    ):
        shown = ", ".join(f"{value:g}" for value in distinct)
        words = f"Warning: the targets are {len(distinct)} whole numbers only ({shown})."
        return [f"{words} If they are classes, name the column 'label'."]
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (0.0, 0.0, 0.0)
    far = [value for value in values if high > low and abs(value - middle) > _FAR * (high - low)]
    notes = []
    if far:
        notes.append(
            f"Warning: {len(far)} of {len(values)} targets are far from all others, such as {far[0]:g}. If they mean "
            "none, leave their cells empty."
        )
    size = math.sqrt(statistics.fmean(value * value for value in values)) if values else 1.0
    if not 1 / _MAX_SIZE < size < _MAX_SIZE:
        notes.append(
            f"Warning: the targets are about {size:.3g} in size, and a network learns numbers near 1 best. Divide them "
            f"by {10 ** round(math.log10(size)):g}, say."
        )
    return notes


def _clean_names(samples: Sequence[SourceSample]) -> tuple[list[SourceSample], list[str]]:
    """Samples with ids and groups as they can be shown, and notes on groups that are none."""
    cleaned = [
        dataclasses.replace(sample, id=as_text(sample.id), group=_clean_group(sample.group)) for sample in samples
    ]
    ungrouped = {old.group for old, new in zip(samples, cleaned, strict=True) if old.group and new.group is None}
    if not ungrouped:
        return cleaned, []
    count = sum(sample.group in ungrouped for sample in samples)
    words = f"Warning: {count} of {len(cleaned)} samples have no group ({_listed(sorted(ungrouped))})."
    return cleaned, [f"{words} Each is taken as a group of its own."]


def _clean_group(group: str | None) -> str | None:
    """Group of a sample, or None.

    Words such as ``nan`` would make one large group.
    """
    cleaned = clean_text(group or "")
    return None if cleaned.casefold() in _MISSING else cleaned


def _mark_missing(sample: SourceSample, missing: set[str], noun: str = "label") -> SourceSample:
    """Mark a sample without a label; ``missing`` holds those of its labels that mean none."""
    if sample.problem is not None or not missing:
        return sample
    word = max(missing)
    reason = f"its {noun} '{word}' means none" if word else f"it has no {noun}"
    return dataclasses.replace(sample, problem=f"{_row_of(sample)}{reason}", unlabelled=True)


def _row_of(sample: SourceSample) -> str:
    return f"row {sample.extra['row']}: " if "row" in sample.extra else ""


def _missing_number(labels: Iterable[str], notes: list[str]) -> set[str]:
    """Labels −1 beside 0, 1, 2 and so on.

    Many data sets mark samples without a label so.
    """
    values = {label: read_number(label) for label in labels if label.casefold() not in _MISSING}
    numbers = {value for value in values.values() if value is not None}
    if None in values.values() or min(numbers, default=0) != -1 or not {-1, 0} < numbers:
        return set()
    if numbers == {-1, 0, 1}:
        notes.append(
            "Warning: the label -1 is taken as a class beside 0 and 1. If it means no label, leave these samples out."
        )
        return set()
    return {label for label, value in values.items() if value == -1}


def _refuse_scores(counts: Mapping[str, int], source: object) -> None:
    total = sum(counts.values())
    values = [read_number(label) for label in counts]
    is_score = bool(values) and None not in values and any(value != round(value) for value in values if value)
    if not is_score and not (total >= _SMALL_TABLE and len(counts) > total / 2):
        return
    reason = "decimal numbers" if is_score else "nearly as many as the samples"
    raise ValueError(
        f"The labels of {source} are {reason}: {len(counts)} different ones for {total} samples, such as "
        f"{_listed(list(counts)[:2])}. That is regression: a table of your own has numbers in a column 'target'. For "
        "classification give each sample the name of a class, for scores a range, such as negative and positive."
    )


def _variants(counts: Mapping[str, int]) -> list[list[str]]:
    """Labels that differ by case, spaces, ``_`` or ``-`` only.

    The most frequent of a group comes first.
    """
    groups: dict[object, list[str]] = collections.defaultdict(list)
    for label in counts:
        folded = unicodedata.normalize("NFKC", label).casefold()
        number = read_number(label)
        groups[re.sub(r"[\s_-]+", " ", folded).strip() if number is None else number].append(label)
    order = [sorted(group, key=lambda label: (-counts[label], "_" in label, label)) for group in groups.values()]
    return [group for group in order if len(group) > 1]


def describe_counts(counts: Mapping[str, Mapping[str, int]], samples: Mapping[str, int]) -> list[str]:
    """Notes on the numbers of samples by split and class.

    Args:
        counts: Number of samples by split ("" where there is none) and class or label; of numbers there are none.
        samples: Number of samples by split.

    Example:
        >>> counts = {"train": {"Cat": 90, "cat": 60}, "test": {"Cat": 6, "cat": 0}}
        >>> describe_counts(counts, {"train": 150, "test": 6})[0]
        "Warning: classes 'Cat' and 'cat' differ by case, spaces, '_' or '-' only. If they are one, write it one way."
    """
    classes = list(dict.fromkeys(label for by_class in counts.values() for label in by_class))
    if not classes:
        return []
    totals = {label: sum(by_class.get(label, 0) for by_class in counts.values()) for label in classes}
    notes = [
        f"Warning: classes {_listed(group, ' and ')} differ by case, spaces, '_' or '-' only. If they are one, write "
        "it one way."
        for group in _variants(totals)
    ]
    few = [label for label, total in totals.items() if total <= _FEW]
    if few:
        notes.append(f"Warning: {_classes_have(few)} at most {_FEW} samples: {_listed(few)}.")
    if everywhere := [label for label, total in totals.items() if total == sum(samples.values())]:
        notes.append(f"Warning: every sample has the label {_listed(everywhere)}, which so tells nothing.")
    splits = [split for split in counts if split]
    if len(splits) > 1:
        homes = {label: [split for split in splits if counts[split].get(label)] for label in classes}
        alone = [f"'{label}' ({names[0]})" for label, names in homes.items() if len(names) == 1]
        if alone:
            names = ", ".join(alone[:_MAX_NAMES]) + (", …" if len(alone) > _MAX_NAMES else "")
            notes.append(f"Warning: {len(alone)} of {len(classes)} classes are in one split only: {names}.")
        elsewhere = [label for label, names in homes.items() if len(names) > 1 and "train" not in names]
        if elsewhere:
            notes.append(f"Warning: {_classes_have(elsewhere)} no training sample: {_listed(elsewhere)}.")
    return notes + [sentence for split in splits if (sentence := describe_size(split, samples[split])) is not None]


def describe_size(split: str, samples: int) -> str | None:
    """Note on a small validation or test split, or None.

    Example:
        >>> describe_size("test", 6)
        'The test split has 6 samples: each is 16.7 % of it.'
    """
    if split == "train" or not 0 < samples < _SMALL_SPLIT:
        return None
    size = format_count(samples, "sample")
    return f"The {_NAMES.get(split, split)} split has {size}: each is {100 / samples:.1f} % of it."


def describe_drawn(samples: int) -> list[str]:
    """Note on splits drawn from few samples."""
    test_samples = max(1, round(samples / 10))  # by the default fraction
    if test_samples >= _SMALL_SPLIT:
        return []
    share = 100 / test_samples
    return [
        f"Drawn from {samples} samples, the test split will have about {test_samples}: each is {share:.1f} % of it."
    ]


def describe_repeats(samples: Sequence[StoredSample]) -> list[str]:
    """Notes on samples of other groups with the same files."""
    members: dict[tuple[object, ...], list[StoredSample]] = collections.defaultdict(list)
    for sample in samples:
        sums = tuple(sorted((modality, str(file.get("sha256"))) for modality, file in sample.files.items()))
        if sums:
            members[sums].append(sample)
    repeated = [group for group in members.values() if len({sample.group for sample in group}) > 1]
    notes = []
    if repeated:
        names = ", ".join(sample.id for sample in _two_that_differ(repeated[0], "group"))
        shared = sum(len({sample.split for sample in group}) > 1 for group in repeated)
        where = f", {shared} of them across splits" if shared else ""
        sets = format_count(len(repeated), "set")
        notes.append(
            f"Warning: the same files are samples of several groups: {sets} of copies{where}, such as "
            f"{names}. Leave the copies out, or give them one group."
        )
    if contradicting := [group for group in repeated if len({sample.label for sample in group}) > 1]:
        two = _two_that_differ(contradicting[0], "label")
        names = ", ".join(f"{sample.id} ({sample.label})" for sample in two)
        sets = format_count(len(contradicting), "set of copies has", "sets of copies have")
        notes.append(f"Warning: {sets} several labels, such as {names}.")
    return notes


def _two_that_differ(copies: Sequence[StoredSample], attribute: str) -> list[StoredSample]:
    """Two copies that differ in an attribute: two of one group or label would show nothing."""
    first = {getattr(sample, attribute): sample for sample in reversed(copies)}
    return list(reversed(first.values()))[:2]


def equal_modalities(
    samples: Iterable[Mapping[str, object]], alike: Mapping[str, object]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Pairs of modalities made in one way of the same files.

    Args:
        samples: Path or checksum of each sample's files, by modality.
        alike: What a modality is made by; only those made in the same way are compared.

    Returns:
        For each pair with equal files, the number of samples with equal ones and with both.
    """
    pairs = [pair for pair in itertools.combinations(alike, 2) if alike[pair[0]] == alike[pair[1]]]
    equal, present = collections.Counter[tuple[str, str]](), collections.Counter[tuple[str, str]]()
    for files in samples if pairs else ():
        for pair in pairs:
            if pair[0] in files and pair[1] in files:
                present[pair] += 1
                equal[pair] += files[pair[0]] == files[pair[1]]
    return {pair: (number, present[pair]) for pair, number in equal.items() if number}


def describe_equal(samples: Sequence[StoredSample], made_by: Mapping[str, object]) -> list[str]:
    """Notes on samples with one content in two modalities."""
    sums = ({modality: file.get("sha256") for modality, file in sample.files.items()} for sample in samples)
    return [
        f"Warning: '{first}' and '{second}' have the same content in {equal} of {present} samples."
        for (first, second), (equal, present) in equal_modalities(sums, made_by).items()
    ]


def _listed(labels: Sequence[str], last: str = ", ") -> str:
    """Labels in quotes, at most five of them."""
    names = [f"'{label}'" for label in labels[:_MAX_NAMES]]
    if len(labels) > _MAX_NAMES:
        return f"{', '.join(names)}, …"
    return last.join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)


def _classes_have(labels: Sequence[str]) -> str:
    return format_count(len(labels), "class has", "classes have")
