"""Kinetics-Sounds."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from bmlr.data._base import SplitName
from bmlr.data.readers.suffixes import VIDEO_SUFFIXES
from bmlr.data.sets._audiovisual import AudioVisualData
from bmlr.data.sets._lists import SPLIT_WORDS, ListEntry, files_by_stem, find_list_problem, read_lists
from bmlr.data.store._samples import SourceSample

_KINETICS_NAME = re.compile(r"(.+)_[0-9]{1,6}_[0-9]{1,6}")

_REPLACED = "replacement"  # first letters of the folder of videos that replace corrupted ones


class KineticsSounds(AudioVisualData):
    """Kinetics-Sounds: videos of actions seen and heard.

    About 31 actions, 10 s each (Arandjelović et al., 2017). Repositories differ in the classes; the preparation counts
    those it finds. Audio is the first 10 s (257 × 625), video three frames per clip.

    * ``protocol="clean"``: every source video is in one split.
    * ``protocol="paper"``: the published lists, given to the preparation, or the folders train, val and test. Without
      a validation split, ``val_fraction`` of the training clips are drawn for it.

    See :class:`~bmlr.data.sets._audiovisual.AudioVisualData` for the parameters.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("kinetics-sounds", root="prepared").modalities["video"].shape  # reads no file yet
        (3, 3, 224, 224)
    """

    name: ClassVar[str] = "kinetics-sounds"

    @staticmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Clips of the published folder.

        Videos are searched in ``source`` and all folders below: folders of classes, such folders in ``train``, ``val``
        and ``test`` (or ``training``, ``train_256``, …), or one flat folder with lists. A video in a folder
        ``replacement_for_…`` takes the place of one of its name elsewhere; alone and on no list it has no class. The
        class is that of the list. Without a list, or if the list gives numbers and each folder holds the videos of one
        number, the class is the video's folder. The split is that of the list, else of the folder. The group is the
        source video: the name without the times at its end (``<video>_000010_000020.mp4``).

        Args:
            source: Folder of the videos.
            lists: Published lists by split: comma-separated lines that begin with the name and end with the label, or
                with a header (name and label columns; Kinetics' own ``label,youtube_id,time_start,time_end`` too).

        Returns:
            The clips by name. A clip has a problem if it is listed and not found, found and not listed, listed or found
            twice, or without a class.

        Raises:
            FileNotFoundError: If the folder or a list is missing, or there are no videos.
            ValueError: If a list cannot be read.
        """
        source = Path(source)
        if not source.is_dir():
            raise FileNotFoundError(f"There is no folder {source}.")
        videos = files_by_stem(source, set(VIDEO_SUFFIXES), below=True)
        listed = read_lists(lists, label_field=-1)
        replaced = {name: path for name, paths in videos.items() for path in paths if _is_replacement(path, source)}
        for name, path in replaced.items():  # the class is that of the video it replaces
            videos[name] = [original for original in videos[name] if original != path] or [path]
        from_folders = {name: _read_folders(paths[0], source) for name, paths in videos.items()}
        folders_match = _folders_are_classes({name: folder for name, (folder, _) in from_folders.items()}, listed)
        samples = []
        for name in sorted({*videos, *listed}):
            entries, paths = listed.get(name, []), videos.get(name, [])
            folder_class, folder_split = from_folders.get(name, (None, None))
            by_folder = not entries or (entries[0].label.isdecimal() and folders_match and folder_class is not None)
            label = folder_class if by_folder else entries[0].label
            problem = (
                (f"it is in {entries[0].split}'s list, but there is no such video" if not paths else None)
                or (
                    f"there are {len(paths)} videos of this name: {', '.join(map(str, paths))}"
                    if len(paths) > 1
                    else None
                )
                or find_list_problem(entries, lists, None)
                or (None if label else "it is in no folder of a class and on no list")
            )
            unlabelled = not label and name in replaced
            match = _KINETICS_NAME.fullmatch(name)
            files = dict.fromkeys(("audio", "video"), replaced.get(name, paths[0])) if paths else {}
            split = entries[0].split if entries else folder_split
            group = match[1] if match else name
            samples.append(SourceSample(name, label or "", split, group, files, {}, problem, unlabelled))
        return samples


def _read_folders(path: Path, source: Path) -> tuple[str | None, SplitName | None]:
    """Class and split by the folders between ``source`` and a video."""
    folders = path.relative_to(source).parts[:-1]
    split = next((split for folder in folders if (split := _split_of_folder(folder))), None)
    last = folders[-1] if folders else None
    named = last is not None and _split_of_folder(last) is None and not last.casefold().startswith(_REPLACED)
    return last if named else None, split


def _split_of_folder(folder: str) -> SplitName | None:
    """Split that a folder such as ``training`` or ``train_256`` holds, or None."""
    return SPLIT_WORDS.get(re.sub(r"[ _-]?[0-9]+$", "", folder.casefold()))


def _is_replacement(path: Path, source: Path) -> bool:
    return any(folder.casefold().startswith(_REPLACED) for folder in path.relative_to(source).parts[:-1])


def _folders_are_classes(folders: Mapping[str, str | None], listed: Mapping[str, Sequence[ListEntry]]) -> bool:
    """Whether each folder holds videos of one listed class."""
    numbers: dict[str, set[str]] = collections.defaultdict(set)
    for name, folder in folders.items():
        if folder is not None and name in listed:
            numbers[folder].add(listed[name][0].label)
    return all(len(labels) == 1 for labels in numbers.values())
