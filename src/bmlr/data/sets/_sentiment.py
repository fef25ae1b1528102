"""CMU-MOSI and CMU-MOSEI as data sets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice
from bmlr._files import file_checksum
from bmlr.batch import Batch
from bmlr.data._base import Modality, MultimodalData, Split, SplitName, TrainingDefaults
from bmlr.data.readers._pickles import read_arrays_pickle
from bmlr.data.sets._sentiment_files import NOT_FINITE, clean_features, read_identities, read_scores, read_steps
from bmlr.data.store._cache import (
    MANIFEST,
    cache_root,
    cached_arrays,
    entry_folder,
    plain_key,
    read_entry,
)
from bmlr.data.store._options import PrepareOptions, PrepareResult

_SPLITS: tuple[SplitName, ...] = get_args(SplitName)


_VERSION = 1  # of how the arrays are made; part of the cache's key


_PUBLISHED: dict[SplitName, str] = {"train": "train", "val": "valid", "test": "test"}


_MODALITIES = ("text", "vision", "audio")


_STANDARDISED = ("vision", "audio")


_ROWS = 1 << 16  # time steps that are summed at a time


_CLASSES = {
    7: (
        "highly negative", "negative", "weakly negative", "neutral", "weakly positive", "positive", "highly positive",
    ),
    3: ("negative", "neutral", "positive"),
    2: ("negative", "non-negative"),
}  # fmt: skip


def sentiment_classes(
    scores: np.ndarray, num_classes: Literal[7, 3, 2] = 7, conversion: Literal["round", "bins"] = "round"
) -> np.ndarray:
    r"""Classes of sentiment scores s, which are means of annotators in [−3, 3].

    * 7 classes, ``round``: :math:`\mathrm{round}(\mathrm{clip}(s, -3, 3)) + 3`, halves to the even number, as
      "Acc-7" is computed in the literature: −2.5 and −1.5 are both −2, ±0.5 is 0.
    * 7 classes, ``bins``: BalanceBenchmark's, bounded by s < −2, s < −1, s < 0, s = 0, s ≤ 1, s ≤ 2. Only a score of
      exactly zero is neutral.
    * 3 classes: the sign of s.
    * 2 classes: s < 0 and s ≥ 0 ("Has0").

    Args:
        scores: Scores, shape (N,).
        num_classes: 7, 3 or 2.
        conversion: ``round`` or ``bins``; matters to 7 classes alone.

    Returns:
        Class indices, shape (N,), int64.

    Raises:
        ValueError: If there is no such conversion, or a score is NaN.

    Example:
        >>> import numpy as np
        >>> scores = np.array([-3.0, -2.5, -0.5, 0.0, 0.4, 1.5, 2.6])
        >>> sentiment_classes(scores).tolist(), sentiment_classes(scores, conversion="bins").tolist()
        ([0, 1, 3, 3, 3, 5, 6], [0, 0, 2, 3, 4, 5, 6])
        >>> sentiment_classes(scores, 3).tolist(), sentiment_classes(scores, 2).tolist()
        ([0, 0, 0, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 1])
    """
    if num_classes not in _CLASSES:
        raise ValueError(f"Parameter `num_classes` should be 7, 3 or 2. Found `num_classes = {num_classes}`.")
    check_choice("conversion", conversion, ("round", "bins"))
    s = np.asarray(scores, dtype=np.float64)
    if np.isnan(s).any():
        raise ValueError("`scores` should be numbers. Found NaN.")
    if num_classes == 3:
        classes = np.sign(s) + 1
    elif num_classes == 2:
        classes = s >= 0
    elif conversion == "round":
        classes = np.round(np.clip(s, -3, 3)) + 3
    else:
        classes = np.select([s < -2, s < -1, s < 0, s == 0, s <= 1, s <= 2], range(6), 6)
    return np.asarray(classes, dtype=np.int64)


class SentimentSplit(Split):
    """A split of MOSI or MOSEI, held as the time steps of all samples, memory-mapped.

    Sequences come padded at their tail with zeros to the longest of the data set. A time step of zeros is padding.

    Args:
        arrays: Prepared arrays.
        rows: Positions of the split's samples in them.
        targets: Class index of each sample of the split.
        steps: Length sequences are padded to, by modality.
        statistics: Mean and standard deviation of each dimension, shape (2, d), of the modalities to standardise.
        masked: Tell which samples lack a modality.

    Attributes:
        ids: Identifier of each sample.
        scores: Sentiment score of each sample, in [−3, 3].
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        rows: np.ndarray,
        targets: np.ndarray,
        *,
        steps: Mapping[str, int],
        statistics: Mapping[str, np.ndarray],
        masked: bool,
    ) -> None:
        self.arrays, self.rows, self.steps, self.statistics = arrays, rows, steps, statistics
        self.targets = torch.from_numpy(targets)
        self.groups = arrays["videos"][rows].tolist()
        self.ids: list[str] = arrays["ids"][rows].tolist()
        self.scores: np.ndarray = arrays["scores"][rows]
        lengths = {name: np.diff(arrays[f"{name}_offsets"])[rows] for name in _MODALITIES}
        incomplete = {name: length > 0 for name, length in lengths.items() if not length.all()}
        self.present = incomplete if masked and incomplete else None

    def batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The samples at ``indices``, shape (B, T, d) each; sequences have no random transforms."""
        positions = np.asarray(indices, dtype=np.int64)
        return Batch(
            {name: torch.from_numpy(self._sequences(name, self.rows[positions])) for name in _MODALITIES},
            self.targets[positions],
            None if self.present is None else {u: torch.from_numpy(x[positions]) for u, x in self.present.items()},
            torch.from_numpy(positions),
        )

    def _sequences(self, name: str, samples: np.ndarray) -> np.ndarray:
        values, offsets = self.arrays[name], self.arrays[f"{name}_offsets"]
        padded = np.zeros((len(samples), self.steps[name], values.shape[1]), dtype=np.float32)
        for sequence, sample in zip(padded, samples, strict=True):
            start, end = offsets[sample : sample + 2]
            sequence[: end - start] = values[start:end]
        return _standardised(padded, self.statistics[name]) if name in self.statistics else padded


class Sentiment(MultimodalData):
    """Common to MOSI and MOSEI; see :class:`MOSI`.

    Args:
        root: The folder ``bmlr prepare`` has made, or the published file, or its folder; by default the environment
            variable ``BMLR_DATA``.
        protocol: ``clean`` or ``paper``.
        file: Name of the published file, where there are several (``unaligned_50.pkl``).
        num_classes: 7, 3 or 2; see :func:`sentiment_classes`.
        conversion: ``round`` or, for 7 classes, ``bins``.
        drop_zeros: Leave out the samples whose score is exactly zero ("Non0"); with 2 classes only.
        standardise: Shift and scale each dimension of vision and audio to mean 0 and standard deviation 1 of the time
            steps of the training split. Text is left as it is.
        incomplete: How a modality that a sample lacks is given: ``mask`` marks it absent; ``zeros`` says nothing, for
            methods that take no such mark (AGM). To the Transformer encoder both are the same.
        cache: Folder of the cache, used where ``root`` is not prepared; ``BMLR_CACHE`` or ``~/.cache/bmlr`` by
            default.

    Raises:
        ValueError: If a parameter is out of its range, or neither ``root`` nor ``BMLR_DATA`` is given.
    """

    #: The paper's settings but for the width: 128 for the Transformers, which the paper does not state.
    defaults: ClassVar[TrainingDefaults] = TrainingDefaults(width=32)
    #: Names of the published files.
    files: ClassVar[tuple[str, ...]]
    #: Widths of the published vision and audio features.
    widths: ClassVar[dict[str, int]]

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        protocol: Literal["clean", "paper"] = "clean",
        file: str | None = None,
        num_classes: Literal[7, 3, 2] = 7,
        conversion: Literal["round", "bins"] = "round",
        drop_zeros: bool = False,
        standardise: bool = True,
        incomplete: Literal["mask", "zeros"] = "mask",
        cache: str | Path | None = None,
    ) -> None:
        root = root or os.environ.get("BMLR_DATA")
        if not root:
            raise ValueError(
                "Parameter `root` should be the prepared folder or the published file, unless the environment "
                f"variable `BMLR_DATA` names its folder. Found `root = {root!r}` and no `BMLR_DATA`."
            )
        self.root, self.file = str(root), file
        self.protocol = check_choice("protocol", protocol, ("clean", "paper"))
        sentiment_classes(np.zeros(1), num_classes, conversion)
        for parameter, value, neutral, needed in (
            ("conversion", conversion, "round", 7),
            ("drop_zeros", drop_zeros, False, 2),
        ):
            if value != neutral and num_classes != needed:
                raise ValueError(
                    f"Parameter `{parameter}` should be {neutral!r} unless `num_classes = {needed}`. "
                    f"Found `{parameter} = {value!r}`, `num_classes = {num_classes}`."
                )
        self.num_classes, self.conversion, self.drop_zeros = num_classes, conversion, drop_zeros
        self.standardise = standardise
        self.incomplete = check_choice("incomplete", incomplete, ("mask", "zeros"))
        self.cache = None if cache is None else str(cache)
        self.classes = ("negative", "positive") if drop_zeros else _CLASSES[num_classes]
        self.modalities = {name: Modality("sequence", (50, {"text": 768, **self.widths}[name])) for name in _MODALITIES}
        self._arrays: dict[str, np.ndarray] | None = None
        self._rows: dict[SplitName, np.ndarray] = {}
        self._statistics: dict[str, np.ndarray] = {}
        #: Samples that the protocol ``clean`` leaves out.
        self.left_out: list[str] = []

    def prepare(self) -> None:
        """Find and open the prepared arrays, or make them from the published file; ``modalities`` are then those there.

        Raises:
            FileNotFoundError: If there is nothing to read; the message says where it was looked for.
            ValueError: If a file is none of the known layouts, damaged, of the other data set, or one of several
                between which ``file`` does not decide; or if a split would be empty.
        """
        if self._arrays is not None:
            return
        arrays = open_source(self.name, Path(self.root), self.file, None if self.cache is None else Path(self.cache))
        rows, left_out = split_samples(arrays, self.protocol)
        if self.drop_zeros:
            rows = {split: chosen[arrays["scores"][chosen] != 0] for split, chosen in rows.items()}
        for split, chosen in rows.items():
            if not len(chosen):
                raise ValueError(f"Every split should have samples. Split '{split}' of {self.root} would be empty.")
        self._statistics = {u: _statistics(arrays, u, rows["train"]) for u in _STANDARDISED if self.standardise}
        self.modalities = {
            name: Modality("sequence", (longest_sequence(arrays, name), arrays[name].shape[1])) for name in _MODALITIES
        }
        self.left_out = arrays["ids"][left_out].tolist()
        self._rows, self._arrays = rows, arrays

    def split(self, name: SplitName) -> SentimentSplit:
        """One split; groups are the source videos."""
        check_choice("name", name, _SPLITS)
        arrays = self._prepared()
        rows = self._rows[name]
        return SentimentSplit(
            arrays,
            rows,
            sentiment_classes(arrays["scores"][rows], self.num_classes, self.conversion),
            steps={modality: form.shape[0] for modality, form in self.modalities.items()},
            statistics=self._statistics,
            masked=self.incomplete == "mask",
        )

    def load_files(self, files: Mapping[str, Path], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, shape (1, T, d) each, cleaned and standardised as in training.

        Args:
            files: A ``.npy`` file of shape (T, d) per modality, of the features the model was trained on. A modality
                left out is one the sample lacks; it is given as zeros, which the Transformer encoder takes for an
                absent modality.
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read, has another width, or holds nothing but zeros; or if ``files`` names
                no or unknown modalities; the message names it.
        """
        self.prepare()
        forms = {name: self.modalities[name] for name in modalities or self.modalities}
        if not files or not set(files) <= set(forms):
            raise ValueError(f"`files` should name files for some of {list(forms)}. Found {list(files)}.")
        inputs = {}
        for name, form in forms.items():
            values = _read_sequence(Path(files[name]), form.shape[1]) if name in files else np.zeros((1, form.shape[1]))
            if name in files and name in self._statistics:
                values = _standardised(values, self._statistics[name])
            inputs[name] = torch.from_numpy(np.asarray(values, dtype=np.float32)[None])
        return inputs

    def _prepared(self) -> dict[str, np.ndarray]:
        self.prepare()
        if self._arrays is None:
            raise AssertionError("prepare() opens the arrays or raises.")
        return self._arrays


class MOSI(Sentiment):
    """CMU-MOSI: clips of opinions on movies, from the published feature files; text, vision and audio.

    2,199 clips of 93 speakers' videos, with a sentiment score in [−3, 3] that becomes 7, 3 or 2 classes
    (:func:`sentiment_classes`). Read are, without running anything in them,

    * MMSA's ``aligned_50.pkl`` and ``unaligned_50.pkl`` (BERT features of width 768), and
    * MulT's ``mosi_data.pkl`` and ``mosi_data_noalign.pkl`` (GloVe, 300).

    Values that are NaN or infinite become 0 and are counted. What a stated length or BERT's attention mask says is
    padding is left out, and so are the zeros before and after a sequence, wherever the file has them; a time step of
    zeros between others stays, and is padding to the encoder. A sample whose sequence is all padding lacks the
    modality. The file is converted once: to the folder ``bmlr prepare`` is told, or to the cache.

    * Under ``protocol="paper"`` the splits are the published train, valid and test.
    * Under ``protocol="clean"`` (default) no source video is in two splits: the published test split stays whole, so
      that figures compare; validation loses what shares a video with it, and training what shares one with either.
      Such samples are named in ``left_out``. In the published split there should be none, since it is one of videos.

    In both, the epoch is chosen on the validation split.

    Args:
        root: The folder ``bmlr prepare`` has made, or the published file, or its folder; by default the environment
            variable ``BMLR_DATA``.
        protocol: ``clean`` or ``paper``.
        file: Name of the published file, where there are several (``unaligned_50.pkl``).
        num_classes: 7, 3 or 2; see :func:`sentiment_classes`.
        conversion: ``round`` or, for 7 classes, ``bins``.
        drop_zeros: Leave out the samples whose score is exactly zero ("Non0"); with 2 classes only.
        standardise: Shift and scale each dimension of vision and audio to mean 0 and standard deviation 1 of the time
            steps of the training split. Text is left as it is.
        incomplete: How a modality that a sample lacks is given: ``mask`` marks it absent; ``zeros`` says nothing, for
            methods that take no such mark (AGM). To the Transformer encoder both are the same.
        cache: Folder of the cache, used where ``root`` is not prepared; ``BMLR_CACHE`` or ``~/.cache/bmlr`` by
            default.

    Raises:
        ValueError: If a parameter is out of its range, or neither ``root`` nor ``BMLR_DATA`` is given.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("mosi", root="MOSI/Processed/aligned_50.pkl", num_classes=3)  # reads no file yet
        >>> data.classes
        ('negative', 'neutral', 'positive')
    """

    name: ClassVar[str] = "mosi"
    files: ClassVar[tuple[str, ...]] = ("aligned_50.pkl", "unaligned_50.pkl", "mosi_data.pkl", "mosi_data_noalign.pkl")
    widths: ClassVar[dict[str, int]] = {"vision": 20, "audio": 5}


class MOSEI(Sentiment):
    """CMU-MOSEI: the larger successor of MOSI, 22,856 clips; text, vision and audio.

    Read are MMSA's ``aligned_50.pkl`` and ``unaligned_50.pkl`` and MulT's ``mosei_senti_data.pkl`` and
    ``mosei_senti_data_noalign.pkl``. Everything else is as in :class:`MOSI`.

    Args:
        root: The folder ``bmlr prepare`` has made, or the published file, or its folder; by default the environment
            variable ``BMLR_DATA``.
        protocol: ``clean`` or ``paper``.
        file: Name of the published file, where there are several (``unaligned_50.pkl``).
        num_classes: 7, 3 or 2; see :func:`sentiment_classes`.
        conversion: ``round`` or, for 7 classes, ``bins``.
        drop_zeros: Leave out the samples whose score is exactly zero ("Non0"); with 2 classes only.
        standardise: Shift and scale each dimension of vision and audio to mean 0 and standard deviation 1 of the time
            steps of the training split. Text is left as it is.
        incomplete: How a modality that a sample lacks is given: ``mask`` marks it absent; ``zeros`` says nothing, for
            methods that take no such mark (AGM). To the Transformer encoder both are the same.
        cache: Folder of the cache, used where ``root`` is not prepared; ``BMLR_CACHE`` or ``~/.cache/bmlr`` by
            default.

    Raises:
        ValueError: If a parameter is out of its range, or neither ``root`` nor ``BMLR_DATA`` is given.

    Example:
        >>> import bmlr.data
        >>> data = bmlr.data.create("mosei", root="MOSEI", file="aligned_50.pkl", num_classes=2)  # reads no file yet
        >>> data.classes
        ('negative', 'non-negative')
    """

    name: ClassVar[str] = "mosei"
    files: ClassVar[tuple[str, ...]] = (
        "aligned_50.pkl", "unaligned_50.pkl", "mosei_senti_data.pkl", "mosei_senti_data_noalign.pkl",
    )  # fmt: skip
    widths: ClassVar[dict[str, int]] = {"vision": 35, "audio": 74}


_KINDS: dict[str, type[Sentiment]] = {"mosi": MOSI, "mosei": MOSEI}


def prepare_mosi(source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
    """Prepare MOSI, see :func:`prepare_sentiment`."""
    return _prepare("mosi", source, dest, options)


def prepare_mosei(source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
    """Prepare MOSEI, see :func:`prepare_sentiment`."""
    return _prepare("mosei", source, dest, options)


def _prepare(name: str, source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
    unused = ("size", "fps", "seconds", "dtype", "train_list", "val_list", "test_list", "max_rejected")
    options.refuse(name, *unused)
    return prepare_sentiment(name, source, dest, file=options.file)


def prepare_sentiment(name: str, source: Path, dest: Path, *, file: str | None = None) -> PrepareResult:
    """Convert a published feature file to memory-mapped arrays, once; a second call with the same file does nothing.

    Targets, protocol and standardisation are parameters of the data set and need no other conversion.

    Args:
        name: ``mosi`` or ``mosei``.
        source: The published file, or a folder with it.
        dest: Folder in which the folder ``<name>-<hash>`` is made.
        file: Name of the published file, where the folder holds several.

    Returns:
        Counts by published split and (of 7) class, and as notes what was found in the file: a sentence per modality,
        and one for the clean protocol if it leaves samples out.

    Raises:
        FileNotFoundError: If there is no such file; the message says where it was looked for.
        OSError: If ``dest`` cannot be written.
        ValueError: If the file is none of the known layouts, damaged, of the other data set, or one of several.
    """
    check_choice("data", name, _KINDS)
    path = _find_source(name, Path(source), file)
    folder, arrays, made = _converted(name, path, Path(dest))
    classes = _CLASSES[7]
    found = sentiment_classes(arrays["scores"])
    counts: dict[str, dict[str, int]] = {}
    for code, split in enumerate(_SPLITS):
        numbers = np.bincount(found[arrays["split"] == code], minlength=len(classes)).tolist()
        counts[split] = dict(zip(classes, numbers, strict=True))
    return PrepareResult(folder, classes, counts, (), len(found) if made else 0, _notes(arrays))


def _notes(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    notes = []
    for place, name in enumerate(_MODALITIES):
        missing = int((np.diff(arrays[f"{name}_offsets"]) == 0).sum())
        replaced = ", ".join(
            f"{count} {kind}" for kind, count in zip(NOT_FINITE, arrays["replaced"][place].tolist(), strict=True)
        )
        notes.append(
            f"{name}: width {arrays[name].shape[1]}, at most {longest_sequence(arrays, name)} steps, padding "
            f"{arrays['padding'][place]}; set to 0: {replaced}; {arrays['beyond'][place]} steps beyond the stated "
            f"length left out; {missing} samples without it"
        )
    _, left_out = split_samples(arrays, "clean") if arrays["videos"].all() else ({}, np.zeros(0, dtype=np.int64))
    if len(left_out):
        ids = ", ".join(arrays["ids"][left_out[:5]].tolist())
        more = ", …" if len(left_out) > 5 else ""
        notes.append(
            f"protocol clean leaves out {len(left_out)} samples that share a video with another split: {ids}{more}"
        )
    return tuple(notes)


def open_source(name: str, root: Path, file: str | None, cache: Path | None) -> dict[str, np.ndarray]:
    """The arrays of ``root``: a prepared folder, one that holds it, the published file, or its folder."""
    entries = [] if root.is_file() else _entries(name, root, file)
    if len(entries) > 1:
        raise ValueError(
            f"Parameter `root` should hold one prepared '{name}', or `file` decide. Found "
            f"{', '.join(f'{folder} of {made_from}' for folder, made_from in entries)}."
        )
    if entries:
        entry = read_entry(entries[0][0])
        if entry is None or entry[0]["key"].get("version") != _VERSION:
            raise ValueError(f"{entries[0][0]} is damaged or of another version: remove it and prepare '{name}' again.")
        return entry[1]
    path = _find_source(name, root, file)
    return _converted(name, path, cache_root() if cache is None else cache)[1]


def _entries(name: str, root: Path, file: str | None) -> list[tuple[Path, str]]:
    """Prepared folders in or at ``root``, with the name of the file they were made from."""
    manifests = [root / MANIFEST] if root.name.startswith(f"{name}-") else []
    for folder in (root, root / name):
        manifests += sorted(folder.glob(f"{name}-*/{MANIFEST}"))
    found = []
    for manifest in manifests:
        if manifest.is_file():
            entry = read_entry(manifest.parent)
            made_from = "a damaged entry" if entry is None else str(entry[0]["key"].get("file"))
            if file is None or entry is None or made_from == file:
                found.append((manifest.parent, made_from))
    return found


def _find_source(name: str, source: Path, file: str | None) -> Path:
    """The published file."""
    if source.is_file():
        return source
    folders = [source, source / "Processed", source / name, source / name.upper(), source / name.upper() / "Processed"]
    names = _KINDS[name].files if file is None else (file,)
    found: list[Path] = []
    for path in (folder / wanted for folder in folders for wanted in names):
        if path.is_file() and not any(path.samefile(other) for other in found):  # where case does not matter
            found.append(path)
    if not found:
        raise FileNotFoundError(
            f"There is no {' or '.join(names)} of '{name}', and nothing prepared from one: looked in "
            f"{', '.join(map(str, folders))}."
        )
    if len(found) > 1:
        raise ValueError(
            f"Parameter `file` should name one of the files of '{name}'. Found {', '.join(map(str, found))}."
        )
    return found[0]


def _converted(name: str, path: Path, root: Path) -> tuple[Path, dict[str, np.ndarray], bool]:
    """Folder and arrays of a published file's conversion in ``root``, and whether it was made by this call."""
    made = []

    def build() -> dict[str, np.ndarray]:
        made.append(True)
        return _convert(name, path)

    key = plain_key({"data": name, "file": path.name, "sha256": file_checksum(path), "version": _VERSION})
    arrays = cached_arrays(name, key, build, root)
    return entry_folder(name, key, root), arrays, bool(made)


def _convert(name: str, path: Path) -> dict[str, np.ndarray]:
    """All arrays of a published file: samples of all splits one after the other, time steps of all samples too."""
    content = read_arrays_pickle(path)
    splits: dict[SplitName, Mapping[Any, Any]] = {}
    for split, published in _PUBLISHED.items():
        values = content.get(published)
        if not isinstance(values, dict):
            raise ValueError(f"{path} should hold a dictionary '{published}'. Found {sorted(map(str, content))}.")
        splits[split] = values
    scores, ids, videos = [], [], []
    for split, values in splits.items():
        where = f"{path}: '{_PUBLISHED[split]}'"
        identities = read_identities(values, where)
        ids += [identity for identity, _ in identities]
        videos += [video for _, video in identities]
        scores.append(read_scores(values, len(identities), where))
    arrays = {
        "ids": np.array(ids),
        "videos": np.array(videos),
        "scores": np.concatenate(scores),
        "split": np.repeat(np.arange(len(_SPLITS), dtype=np.int8), [len(split) for split in scores]),
    }
    reports = []
    for modality in _MODALITIES:
        stated = {f"{path}: '{_PUBLISHED[split]}'": values for split, values in splits.items()}
        steps, report = read_steps(stated, modality, [len(split) for split in scores])
        arrays[modality] = np.concatenate(steps)
        arrays[f"{modality}_offsets"] = np.concatenate(([0], np.cumsum([len(rows) for rows in steps])))
        reports.append(report)
    _check_identity(name, path, arrays)
    arrays["replaced"] = np.array([report.replaced for report in reports], dtype=np.int64)
    arrays["beyond"] = np.array([report.beyond for report in reports], dtype=np.int64)
    arrays["padding"] = np.array([report.padding for report in reports])
    return arrays


def _check_identity(name: str, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise a ValueError if the file is the other data set's, which has files of the same names."""
    widths = {modality: arrays[modality].shape[1] for modality in _STANDARDISED}
    for other, kind in _KINDS.items():
        if other != name and widths == kind.widths and not path.name.startswith(f"{name}_"):
            raise ValueError(f"{path} should be of '{name}'. Its widths, {widths}, are those of '{other}'.")


def split_samples(arrays: Mapping[str, np.ndarray], protocol: str) -> tuple[dict[SplitName, np.ndarray], np.ndarray]:
    """Positions of the samples of each split, and of those left out."""
    split, videos = np.asarray(arrays["split"]), np.asarray(arrays["videos"])
    rows: dict[SplitName, np.ndarray] = {name: np.flatnonzero(split == code) for code, name in enumerate(_SPLITS)}
    if protocol == "paper":
        return rows, np.zeros(0, dtype=np.int64)
    unknown = np.flatnonzero(videos == "")
    if len(unknown):
        raise ValueError(
            "Protocol 'clean' needs identifiers that tell the source video, as 'video$_$clip'. "
            f"Found {arrays['ids'][unknown[0]]!r}."
        )
    rows["val"] = rows["val"][~np.isin(videos[rows["val"]], videos[rows["test"]])]
    taken = videos[np.concatenate((rows["val"], rows["test"]))]
    rows["train"] = rows["train"][~np.isin(videos[rows["train"]], taken)]
    return rows, np.setdiff1d(np.arange(len(split)), np.concatenate(list(rows.values())))


def longest_sequence(arrays: Mapping[str, np.ndarray], name: str) -> int:
    return max(1, int(np.diff(arrays[f"{name}_offsets"]).max()))


def _statistics(arrays: Mapping[str, np.ndarray], name: str, rows: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each dimension over the samples' time steps that are not zero, shape (2, d).

    A dimension that does not vary is only shifted.
    """
    offsets, values = arrays[f"{name}_offsets"], arrays[name]
    chosen = np.zeros(len(offsets) - 1, dtype=bool)
    chosen[rows] = True
    used = np.repeat(chosen, np.diff(offsets))

    def blocks() -> Any:
        for start in range(0, len(values), _ROWS):
            block = np.asarray(values[start : start + _ROWS][used[start : start + _ROWS]], dtype=np.float64)
            yield block[block.any(1)]

    count = sum(len(block) for block in blocks())
    if not count:
        raise ValueError(f"The training split should have '{name}'. Every sample lacks it.")
    mean = sum(block.sum(0) for block in blocks()) / count
    deviation = np.sqrt(sum(((block - mean) ** 2).sum(0) for block in blocks()) / count)
    constant = deviation <= 1e-6 * np.abs(mean)
    if constant.all():
        raise ValueError(f"The training split's '{name}' should not be the same at every time step.")
    return np.stack((mean, np.where(constant, 1.0, deviation)))


def _standardised(values: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Values (…, T, d) shifted and scaled, except for time steps of zeros, which are padding; float32."""
    real = values.any(-1, keepdims=True)
    return np.where(real, (values - statistics[0]) / statistics[1], 0.0).astype(np.float32)


def _read_sequence(path: Path, width: int) -> np.ndarray:
    """The features of a new sample, shape (T, d), cleaned."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        values = np.lib.format.open_memmap(path, mode="r")  # which reads nothing else, and no objects
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read as a .npy file: {error}") from error
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path} should be a .npy file of numbers. Found {values.dtype}.")
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise ValueError(f"{path} should have shape (T, {width}) with T at least 1. Found {values.shape}.")
    cleaned, counts = clean_features(values)
    if counts.any():
        warnings.warn(f"{path}: {counts.sum()} values that are not finite were set to 0, as in training.", stacklevel=2)
    if not cleaned.any():
        raise ValueError(f"{path} holds zeros only. Leave out the file of a modality that the sample lacks.")
    return cleaned
