"""Published sets of images, texts and frames: UCF-101, UPMC Food-101 and MVSA-Single."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from bmlr.data._base import SplitName
from bmlr.data._group_split import leave_out_shared
from bmlr.data.readers.suffixes import IMAGE_SUFFIXES
from bmlr.data.sets._lists import files_by_stem, find_folder, find_list_problem, read_lines, read_lists, read_text
from bmlr.data.sets._manifest import Manifest
from bmlr.data.sets._table_store import store_files
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._plausibility import check_labels
from bmlr.data.store._samples import SourceSample
from bmlr.data.store._store import Store

_SOUND = ("allow_silent", "dtype")
_TIMES = ("fps", "seconds", "min_seconds", "frame_rate")
_FRAME_RATE = 25.0  # of UCF-101's videos, and of the images extracted from them


class ListedData(Manifest):
    """Samples of published folders and lists, read as a table of files.

    Read by ``bmlr prepare NAME SOURCE DEST``, as a table of one's own is; the source is not needed after that.

    * ``protocol="clean"``: no group is in two splits. The published test split stays whole; what shares a group with it
      is left out of validation, and what shares one with either is left out of training (``left_out``). Without a
      published split, or with ``resplit``, all splits are drawn by group.
    * ``protocol="paper"``: the published split as it is.

    Without a published validation split, ``val_fraction`` of the training samples are drawn for it, by group.
    """

    #: Kind of each modality, as in a table.
    kinds: ClassVar[Mapping[str, str]]
    #: Options of the preparation that this set does not use.
    unused: ClassVar[tuple[str, ...]] = (*_SOUND, *_TIMES)

    @staticmethod
    @abstractmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Samples of the published folder, without reading their media."""

    @classmethod
    def convert(cls, source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
        """Read the published folder into a store in ``dest``."""
        options.refuse(cls.name, "file", "allow_outside", *cls.unused)
        samples, notes = check_labels(cls.list_samples(Path(source), options.lists), source)
        present = {name for sample in samples if sample.problem is None for name in (*sample.files, *sample.texts)}
        kinds = {name: kind for name, kind in cls.kinds.items() if name in present}
        return store_files(cls.name, kinds, samples, source, dest, options, notes=notes)

    @property
    def left_out(self) -> list[str]:
        """Samples of the published splits left out by protocol ``clean``."""
        used = np.zeros(len(self.store), dtype=bool)
        used[np.concatenate(list(self._rows.values()))] = True
        return [sample.id for sample, kept in zip(self.store.samples, used, strict=True) if not kept and sample.split]

    def _split_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        groups = [sample.group for sample in store.samples]
        published = any(sample.split for sample in store.samples)
        if self.protocol == "clean" and (self.resplit or not published):
            return self._draw_rows(store, np.arange(len(store)), groups, test_fraction=self.test_fraction)
        rows = self._listed_rows(store)
        if self.protocol == "clean":
            rows = leave_out_shared(rows, groups)
        return self._with_validation(store, rows, groups)


class UCF101(ListedData):
    """UCF-101: 13,320 videos of 101 actions, in frames and optical flow.

    Of Soomro et al. (2012). Frames are the images of ``jpegs_256`` or the videos themselves, flow the folders
    ``tvl1_flow/u`` and ``tvl1_flow/v`` that Feichtenhofer et al. published (2016). The group is that of the name:
    videos of one group show the same people and place, and the published splits keep groups apart.

    See :class:`ListedData` for the protocols and :class:`~bmlr.data.sets._manifest.Manifest` for the parameters.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("ucf-101", root="prepared", frames=4).frames  # reads no file yet
        4
    """

    name: ClassVar[str] = "ucf-101"
    kinds: ClassVar[Mapping[str, str]] = {"video": "video", "flow": "flow"}
    unused: ClassVar[tuple[str, ...]] = _SOUND

    @classmethod
    def convert(cls, source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
        """Read the published folder into a store in ``dest``."""
        if options.frame_rate is None:
            options = dataclasses.replace(options, frame_rate=_FRAME_RATE)
        return super().convert(source, dest, options)

    @staticmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Videos of the published folders.

        A video is ``jpegs_256/<name>/frame000001.jpg`` and so on, or else ``UCF-101/<class>/<name>.avi``, and its flow
        ``tvl1_flow/u/<name>`` and ``tvl1_flow/v/<name>``. The name is ``v_<class>_g<group>_c<clip>``. Lists have a line
        ``<class>/<name>.avi`` for each, with or without the number of the class behind it. Names are compared without
        case: published ones differ in it.

        Args:
            source: Folder of these, and of ``ucfTrainTestlist`` with ``trainlist01.txt`` and ``testlist01.txt``, the
                first published split.
            lists: Lists by split, in place of those.

        Returns:
            The videos by name. One has a problem if its name is malformed, frames or a part of the flow are missing, or
            it is listed twice or not at all.

        Raises:
            FileNotFoundError: If a folder or list is missing, or there are no videos.
            ValueError: If a list cannot be read.
        """
        videos = _ucf_videos(source)
        flows = _folders(find_folder(source, "tvl1_flow") / "u")
        vertical = _folders(source / "tvl1_flow" / "v")
        folder = source / "ucfTrainTestlist"
        published: dict[SplitName, Path] = {"train": folder / "trainlist01.txt", "test": folder / "testlist01.txt"}
        lists = lists or (published if folder.is_dir() else {})
        listed: dict[str, list[SplitName]] = {}
        for listed_split, path in lists.items():
            for line in read_lines(path):
                listed.setdefault(Path(line.split()[0]).stem.casefold(), []).append(listed_split)
        samples = []
        for key in sorted({*videos, *flows, *listed}):
            name = videos[key].stem if key in videos else flows[key].name if key in flows else key
            files = {modality: paths[key] for modality, paths in (("video", videos), ("flow", flows)) if key in paths}
            match = re.fullmatch(r"v_(\w+)_(g[0-9]+)_c[0-9]+", name)
            splits = listed.get(key, [])
            problem = (
                (None if match else "its name should be v_class_group_clip, as v_Archery_g01_c01")
                or next((f"it has no {modality}" for modality in ("video", "flow") if modality not in files), None)
                or (None if key in vertical else f"there is no {name} in tvl1_flow/v")
                or (f"it is listed {len(splits)} times: in {', '.join(splits)}" if len(splits) > 1 else None)
                or ("it is on none of the lists" if lists and not splits else None)
            )
            label, group = match.groups() if match else ("", "")
            split = splits[0] if splits else None
            samples.append(SourceSample(name, label, split, f"{label}_{group}", files, problem=problem))
        return samples


def _ucf_videos(source: Path) -> dict[str, Path]:
    """Folders of frames or video files by name in lower case."""
    if (source / "jpegs_256").is_dir():
        return _folders(source / "jpegs_256")
    if not (source / "UCF-101").is_dir():
        raise FileNotFoundError(f"There is no folder jpegs_256 of frames and no folder UCF-101 of videos in {source}.")
    files = files_by_stem(source / "UCF-101", {".avi"}, below=True)
    return {name.casefold(): paths[0] for name, paths in files.items()}


def _folders(folder: Path) -> dict[str, Path]:
    """Folders in a folder by name in lower case."""
    inside = find_folder(folder.parent, folder.name).iterdir()
    return {path.name.casefold(): path for path in sorted(inside) if path.is_dir() and path.name[0] != "."}


class Food101(ListedData):
    """UPMC Food-101: web pages of 101 dishes, image and title.

    About 90,000 of them, of Wang et al. (2015), who searched the web for the classes of Food-101. Titles of several
    pages are the same, also in training and test; the group is the title, without regard to case and spaces.

    See :class:`ListedData` for the protocols and :class:`~bmlr.data.sets._manifest.Manifest` for the parameters.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("food-101", root="prepared", max_tokens=64).max_tokens  # reads no file yet
        64
    """

    name: ClassVar[str] = "food-101"
    kinds: ClassVar[Mapping[str, str]] = {"image": "image", "text": "text"}

    @staticmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Images and titles of the published folder.

        An image is ``images/<split>/<class>/<name>.jpg``. ``texts/<split>_titles.csv`` has a line per image without a
        header: file name, title and class.

        Args:
            source: Folder of ``images`` and ``texts``.
            lists: Files of titles by split, in place of those in ``texts``.

        Returns:
            The images by split and name. One has a problem if it has no line, its line no image, or is malformed or
            repeated. One whose title is empty lacks the text.

        Raises:
            FileNotFoundError: If a folder or file is missing, or there are no images.
            ValueError: If a file of titles cannot be read.
        """
        samples = []
        published: dict[SplitName, Path] = {}
        for split in ("train", "test"):
            published[split] = source / "texts" / f"{split}_titles.csv"
        for split, path in {**published, **lists}.items():
            images = files_by_stem(find_folder(source / "images", split), set(IMAGE_SUFFIXES), below=True)
            read: set[str] = set()
            for line, row in enumerate(_csv_rows(path), 1):
                name, title, label = row if len(row) == 3 else (f"line {line}", "", "")
                stem = Path(name).stem
                matching = [image for image in images.get(stem, []) if image.parent.name == label]
                problem = (
                    (f"its line should be a file, a title and a class: {row!r}"[:200] if len(row) != 3 else None)
                    or ("its line repeats an earlier one" if stem in read else None)
                    or (None if matching else f"there is no {name} in images/{split}/{label}")
                )
                identity = f"{split}/{stem}" + (f"#{line}" if stem in read else "")
                read.add(stem)
                texts = {"text": title.strip()} if title.strip() else {}
                files = {"image": matching[0]} if matching else {}
                group = _group_of_text(title)
                samples.append(SourceSample(identity, label, split, group, files, problem=problem, texts=texts))
            samples += [
                SourceSample(f"{split}/{stem}", paths[0].parent.name, split, problem=f"it is not in {path.name}")
                for stem, paths in images.items()
                if stem not in read
            ]
        return samples


def _group_of_text(text: str) -> str | None:
    """The text without regard to case and spaces, None where it is empty: a group of its own."""
    return " ".join(text.casefold().split()) or None


def _csv_rows(path: Path) -> list[list[str]]:
    """Rows of a CSV file without a header, blank ones left out."""
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}.") from error


class MVSASingle(ListedData):
    """MVSA-Single: sentiment of tweets with an image and a text.

    Of Niu et al. (2016). One annotator labelled text and image apart. As in Xu and Mao (2017), a pair has the label of
    both; where one is neutral, that of the other; where one is positive and the other negative, none, and is left out,
    by which 4,511 of 4,869 pairs stay. Texts are the same in several tweets; the group is the text, without regard to
    case, spaces and links. There is no published split: lists are given to the preparation, or all splits are drawn.

    See :class:`ListedData` for the protocols and :class:`~bmlr.data.sets._manifest.Manifest` for the parameters.

    Example:
        >>> import bmlr.data
        >>> bmlr.data.create("mvsa-single", root="prepared", val_fraction=0.2).val_fraction  # reads no file yet
        0.2
    """

    name: ClassVar[str] = "mvsa-single"
    kinds: ClassVar[Mapping[str, str]] = {"image": "image", "text": "damaged text"}

    @staticmethod
    def list_samples(source: Path, lists: Mapping[SplitName, Path]) -> list[SourceSample]:
        """Pairs of the published folder.

        ``labelResultAll.txt`` has a header and lines of a number, a tab and two labels, ``<text>,<image>``. A pair is
        ``data/<number>.jpg`` and ``data/<number>.txt``. Bytes of a text that are no UTF-8 are replaced by ``�``.

        Args:
            source: Folder of ``labelResultAll.txt`` and ``data``.
            lists: Lists by split, lines of number and label. Without lists, pairs have no published split.

        Returns:
            The pairs in the order of the file. One without an agreed label has none. One has a problem if its line is
            malformed, a file is missing, or it is listed twice, with another label or not at all.

        Raises:
            FileNotFoundError: If the folder, the labels or a list is missing.
            ValueError: If a file of labels cannot be read.
        """
        folder = find_folder(source, "data")
        listed = read_lists(lists, label_field=-1)
        samples: dict[str, SourceSample] = {}
        for line in read_lines(source / "labelResultAll.txt"):
            name, *labels = re.split(r"[\t, ]+", line)
            if name.casefold() == "id":
                continue
            label = _agreed_label(labels)
            image, text_file = folder / f"{name}.jpg", folder / f"{name}.txt"
            text = text_file.read_bytes().decode("utf-8-sig", "replace").strip() if text_file.is_file() else ""
            entries = listed.get(name, [])
            disagree = f"its text is labelled {labels[0]}, its image {labels[-1]}" if label == "" else None
            problem = (
                (f"its line should hold a number and two labels: {line!r}" if label is None else None)
                or (None if image.is_file() else f"there is no {image.name} in data")
                or (None if text_file.is_file() else f"there is no {text_file.name} in data")
                or ("its line repeats an earlier one" if name in samples else None)
                or disagree
                or find_list_problem(entries, lists, None if label is None else label.upper())
            )
            files, texts = {"image": image} if image.is_file() else {}, {"text": text} if text else {}
            split = entries[0].split if entries else None
            group = _group_of_text(re.sub(r"https?://\S+", "", text))
            key = name if name not in samples else f"{name}#{len(samples)}"
            samples[key] = SourceSample(
                key,
                label or "",
                split,
                group,
                files,
                problem=problem,
                unlabelled=problem is not None and problem == disagree,
                texts=texts,
            )
        return list(samples.values())


def _agreed_label(labels: Sequence[str]) -> str | None:
    """Label of a pair by those of its text and image.

    Returns:
        The label, an empty text where they are opposite, or None where they are no two labels.
    """
    if len(labels) != 2 or not set(labels) <= {"positive", "neutral", "negative"}:
        return None
    decided = set(labels) - {"neutral"}
    if len(decided) == 2:
        return ""
    return decided.pop() if decided else "neutral"
