"""Options and result of a preparation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from bmlr._checks import check_choice, check_integer, check_non_negative, check_positive, check_unit_interval
from bmlr.data._base import SplitName
from bmlr.data.readers._base import MAX_PIXELS
from bmlr.data.store._samples import Rejection
from bmlr.data.store._store import REJECTED
from bmlr.data.store._targets import NumberRange, TaskName


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """Result of a preparation.

    Attributes:
        folder: Folder of the prepared data.
        classes: Names of the classes or labels; none for numbers.
        counts: Number of stored samples by published split ("" where there is none) and class or label.
        samples: Number of stored samples by published split.
        rejected: The samples left out.
        decoded: Number of samples read by this call; zero if the store was complete.
        notes: Peculiarities of the files and how they were treated, a sentence each.
        numbers: Range of the targets by published split, where they are numbers.
        task: What the targets are: ``multiclass``, ``multilabel`` or ``regression``.
    """

    folder: Path
    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    samples: Mapping[str, int]
    rejected: tuple[Rejection, ...]
    decoded: int
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, NumberRange] = dataclasses.field(default_factory=dict)
    task: TaskName = "multiclass"

    @property
    def rejected_file(self) -> Path:
        """The rejected samples with file and reason, as CSV."""
        return self.folder / REJECTED


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Options of :func:`prepare`; each data set refuses those it does not use.

    Attributes:
        workers: Number of processes that decode; by default one per processor, 0 to decode in this process.
        size: Height and width of the stored frames in pixels.
        fps: Stored frames per second.
        seconds: Length that is read of audio, and of video beside it; by default the data set's own (CREMA-D 3, the
            others 10).
        min_seconds: Audio and video shorter than this is rejected; by default 0.5, or less where ``seconds`` is less.
        allow_silent: Take audio that is silent.
        frame_rate: Images per second in folders of frames; by default that of ``fps``.
        max_pixels: Images, and videos of frames, with more pixels are rejected.
        dtype: Type of the stored spectrograms.
        train_list: Published list of the training split.
        val_list: Published list of the validation split.
        test_list: Published list of the test split.
        file: Name of the published file, where a folder holds several (MOSI, MOSEI).
        allow_outside: Let a table name files outside its folder.
        max_rejected: Fraction of rejected samples above which the preparation fails.
        progress: Show a progress bar.
    """

    workers: int | None = None
    size: int = 224
    fps: float = 1.0
    seconds: float | None = None
    min_seconds: float | None = None
    allow_silent: bool = False
    frame_rate: float | None = None
    max_pixels: int = MAX_PIXELS
    dtype: Literal["float16", "float32"] = "float16"
    train_list: Path | None = None
    val_list: Path | None = None
    test_list: Path | None = None
    file: str | None = None
    allow_outside: bool = False
    max_rejected: float = 0.05
    progress: bool = True

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_integer("workers", self.workers, 0)
        check_integer("size", self.size, 8)
        check_positive("fps", self.fps)
        if self.seconds is not None:
            check_positive("seconds", self.seconds)
        if self.min_seconds is not None:
            check_non_negative("min_seconds", self.min_seconds)
        if self.frame_rate is not None:
            check_positive("frame_rate", self.frame_rate)
        check_integer("max_pixels", self.max_pixels, 1)
        check_choice("dtype", self.dtype, ("float16", "float32"))
        check_unit_interval("max_rejected", self.max_rejected)

    def refuse(self, data: str, *names: str) -> None:
        """Refuse options that ``data`` does not use.

        Raises:
            ValueError: If one of them was given.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                raise ValueError(
                    f"Parameter `{field.name}` should be left out for '{data}'. Found `{field.name} = {value}`."
                )

    @property
    def lists(self) -> dict[SplitName, Path]:
        """Published lists by split, without those left out."""
        paths: dict[SplitName, Path | None] = {"train": self.train_list, "val": self.val_list, "test": self.test_list}
        return {split: Path(path) for split, path in paths.items() if path is not None}
