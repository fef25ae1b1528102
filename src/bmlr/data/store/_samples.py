"""Samples before, while and after they are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmlr.data._base import SplitName


@dataclasses.dataclass(frozen=True)
class SourceSample:
    """One sample as its source describes it, before any file is read.

    Attributes:
        id: Name of the sample, unique in its data set.
        label: Name of its class.
        split: Published split; None where there is none.
        group: What an honest split never shares between splits (actor, speaker, source video); None where every
            sample is a group of its own.
        files: The file of each modality; a modality left out is one the sample does not have.
        extra: What else is known, kept in the manifest: plain values as JSON holds them.
        problem: Why the sample cannot be used, where that is known without reading a file (not listed, no such
            file); it is rejected with this reason.
    """

    id: str
    label: str
    split: SplitName | None = None
    group: str | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A sample that was left out: its name, the file at fault (or an empty text) and why."""

    id: str
    file: str
    reason: str


@dataclasses.dataclass(frozen=True)
class StoredSample:
    """A stored sample.

    Attributes:
        id: Name of the sample.
        label: Name of its class.
        split: Published split; None where there is none.
        group: What an honest split never shares between splits; the sample's name where there is nothing else.
        files: Name, size (``bytes``) and ``sha256`` of each modality's file, and its duration in ``seconds``.
        extra: What else is known.
    """

    id: str
    label: str
    split: SplitName | None
    group: str
    files: Mapping[str, Mapping[str, Any]]
    extra: Mapping[str, Any]
