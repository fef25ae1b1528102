"""Samples before, while and after they are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmlr.data._base import SplitName
from bmlr.data.readers._base import Interval
from bmlr.data.readers._files import POINTER_ADVICE, is_pointer


@dataclasses.dataclass(frozen=True)
class SourceSample:
    """One sample as its source lists it, before any file is read.

    Attributes:
        id: Name of the sample, unique in its data set.
        label: Name of its class.
        split: Published split, or None.
        group: Actor, speaker or source video, never shared between honest splits; None for a group of its own.
        files: File of each modality the sample has.
        extra: Further entries for the manifest, as JSON.
        problem: Reason to reject the sample without reading a file (not listed, no such file), or None.
        unlabelled: Whether it has no label, which is no fault: it is left out, and no limit counts it.
        interval: Interval to read of audio and video; None reads from the beginning.
        texts: Text of each modality that is in the source itself.
    """

    id: str
    label: str
    split: SplitName | None = None
    group: str | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: str | None = None
    unlabelled: bool = False
    interval: Interval | None = None
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def refuse_pointers(samples: Sequence[SourceSample], max_rejected: float) -> None:
    """Raise a ValueError if too many files are Git LFS pointers.

    It is told before hours of decoding. Fewer pointers are rejected one by one, like other files that cannot be read.

    Args:
        samples: The samples.
        max_rejected: Largest fraction of samples with pointers.
    """
    pointers = [path for sample in samples if (path := next(filter(is_pointer, sample.files.values()), None))]
    if len(pointers) > max_rejected * len(samples):
        raise ValueError(
            f"{len(pointers)} of {len(samples)} samples have a Git LFS pointer for a file, such as {pointers[0]}: a "
            f"short text in place of the file. {POINTER_ADVICE}."
        )


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A sample left out.

    Attributes:
        id: Name of the sample.
        file: The file at fault, or an empty text.
        reason: The reason.
    """

    id: str
    file: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Fault:
    """A sample that could not be read now.

    The fault is the machine's or the moment's, and nothing is known about its file: no permission, a share that is
    away, no memory. The next call tries it again.

    Attributes:
        id: Name of the sample.
        file: The file that could not be read.
        reason: The reason.
    """

    id: str
    file: str
    reason: str


@dataclasses.dataclass(frozen=True)
class StoredSample:
    """A stored sample.

    Attributes:
        id: Name of the sample.
        label: Name of its class.
        split: Published split, or None.
        group: Actor, speaker or source video, never shared between honest splits; else the sample's name.
        files: Name, size (``bytes``) and ``sha256`` of each modality's file, and its duration in ``seconds``.
        extra: Further entries.
    """

    id: str
    label: str
    split: SplitName | None
    group: str
    files: Mapping[str, Mapping[str, Any]]
    extra: Mapping[str, Any]
