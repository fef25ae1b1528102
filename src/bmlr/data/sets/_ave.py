"""AVE."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from bmlr.data._base import SplitName
from bmlr.data.sets._audiovisual import AudioVisualData
from bmlr.data.sets._lists import files_by_stem, find_folder, read_lines
from bmlr.data.store._samples import SourceSample

_LISTS: dict[SplitName, str] = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}


class AVE(AudioVisualData):
    """AVE: 4,143 videos of an event seen and heard.

    Videos of 10 s, 28 classes (Tian et al., 2018). The target is the video's class; the times of the event are in
    ``extra`` of the stored samples. Audio and video are as in :class:`~bmlr.data.sets._kinetics_sounds.KineticsSounds`.

    * ``protocol="clean"``: every source video is in one split, with all its events.
    * ``protocol="paper"``: the lists of the published folder.

    See :class:`~bmlr.data.sets._audiovisual.AudioVisualData` for the parameters.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("ave", root="prepared", frames=4).modalities["video"].shape  # reads no file yet
        (4, 3, 224, 224)
    """

    name: ClassVar[str] = "ave"

    @staticmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Events of the published folder.

        ``Annotations.txt`` and the lists ``trainSet.txt``, ``valSet.txt`` and ``testSet.txt`` hold lines
        ``Category&VideoID&Quality&StartTime&EndTime``, with or without that header; videos are ``AVE/<VideoID>.mp4``. A
        line is a sample. Some videos have several lines: the first sample is named by the video, further ones
        ``<VideoID>#2`` and so on; all have the video as their group. The times of the event within the video's ten
        seconds are kept, the whole video is read.

        Args:
            source: Folder that holds ``AVE`` and ``Annotations.txt``.
            lists: Lists by split, in place of those in ``source``.

        Returns:
            The samples in the order of the annotations. A sample has a problem if its line is malformed, repeated or,
            where there are lists, on none of them; or if it has no video, or a video has no line.

        Raises:
            FileNotFoundError: If the folder or the annotations are missing, or there are no videos.
            ValueError: If a file is not text.
        """
        source = Path(source)
        videos = files_by_stem(find_folder(source, "AVE"), {".mp4"})
        if not (source / "Annotations.txt").is_file():
            raise FileNotFoundError(f"There is no Annotations.txt in {source}.")
        own_lists = {split: source / name for split, name in _LISTS.items() if (source / name).is_file()}
        lists = {**own_lists, **lists}
        splits: dict[_Event, list[SplitName]] = collections.defaultdict(list)
        samples: list[SourceSample] = []
        events: dict[_Event, None] = {}  # ordered
        for split, path in ((None, source / "Annotations.txt"), *lists.items()):
            for line, event in _read_events(path):
                if event is None or (event in events if split is None else split in splits[event]):
                    problem = "its line repeats an earlier one" if event else f"its line is malformed: {line!r}"
                    samples.append(SourceSample(f"{path.name}:{line[:80]}#{len(samples)}", "", split, problem=problem))
                    continue
                events.setdefault(event)
                if split is not None:
                    splits[event].append(split)
        numbers: collections.Counter[str] = collections.Counter()
        for event in events:
            numbers[event.video] += 1
            samples.append(_event_sample(event, numbers[event.video], splits[event], videos, listed=bool(lists)))
        return samples + [
            SourceSample(name, "", None, name, {"video": videos[name][0]}, problem="it is not in Annotations.txt")
            for name in sorted(set(videos) - set(numbers))
        ]


@dataclasses.dataclass(frozen=True)
class _Event:
    """A line of an AVE file.

    Files differ in the quality they give, so that it is not compared.
    """

    category: str
    video: str
    quality: str = dataclasses.field(compare=False)
    start: float
    end: float


def _event_sample(
    event: _Event, number: int, splits: Sequence[SplitName], videos: Mapping[str, Sequence[Path]], *, listed: bool
) -> SourceSample:
    files = dict.fromkeys(("audio", "video"), videos[event.video][0]) if event.video in videos else {}
    problem = (
        (None if files else f"there is no {event.video}.mp4 in AVE")
        or (f"it is listed {len(splits)} times: in {', '.join(splits)}" if len(splits) > 1 else None)
        or ("it is on none of the lists" if listed and not splits else None)
    )
    extra: dict[str, Any] = {"start": event.start, "end": event.end, "quality": event.quality}
    name = event.video if number == 1 else f"{event.video}#{number}"
    return SourceSample(name, event.category, splits[0] if splits else None, event.video, files, extra, problem)


def _read_events(path: Path) -> Iterable[tuple[str, _Event | None]]:
    """Lines of an AVE file and their events, None if malformed."""
    for text in read_lines(path):
        fields = [field.strip() for field in text.split("&")]
        if fields[:2] == ["Category", "VideoID"]:
            continue
        try:
            category, video, quality, start, end = fields
            event = _Event(category, video, quality, float(start), float(end))
        except ValueError:
            yield text, None
            continue
        yield text, event if category and video else None
