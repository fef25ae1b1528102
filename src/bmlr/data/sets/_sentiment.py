"""CMU-MOSI and CMU-MOSEI as data sets."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from bmlr._checks import check_choice
from bmlr.data._base import SPLITS, Modality, SplitName, TrainingDefaults
from bmlr.data.sets._sentiment_files import NOT_FINITE, read_sequence
from bmlr.data.sets._sentiment_source import MODALITIES, PUBLISHED, STANDARDISED, convert_once, find_source, open_source
from bmlr.data.sets._stored import Form, StoredData, StoredSplit
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._samples import StoredSample
from bmlr.data.store._store import Store

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


class Sentiment(StoredData):
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
        self.modalities = {
            name: Modality("sequence", (50, {"text": 768, **PUBLISHED[self.name].widths}[name])) for name in MODALITIES
        }
        #: Samples that the protocol ``clean`` leaves out.
        self.left_out: list[str] = []

    @functools.cached_property
    def store(self) -> Store:
        """The converted file; targets are the classes of the scores.

        Raises:
            FileNotFoundError: If there is nothing to read; the message says where it was looked for.
            ValueError: If a file is none of the known layouts, damaged, of the other data set, or one of several
                between which ``file`` does not decide.
        """
        arrays = self._arrays
        targets = sentiment_classes(arrays["scores"], self.num_classes, self.conversion)
        columns = (arrays[name].tolist() for name in ("ids", "split", "videos", "scores"))
        return Store(
            folder=Path(self.root),
            classes=self.classes,
            samples=tuple(
                StoredSample(name, self.classes[target], SPLITS[code], video, {}, {"score": score})
                for target, name, code, video, score in zip(targets.tolist(), *columns, strict=True)
            ),
            targets=targets,
            modalities={name: Modality("sequence", (-1, arrays[name].shape[1])) for name in MODALITIES},
            arrays={name: arrays[name] for name in MODALITIES},
            offsets={name: np.asarray(arrays[f"{name}_offsets"]) for name in MODALITIES},
            key={},
        )

    def split(self, name: SplitName) -> SentimentSplit:
        """One split; groups are the source videos."""
        check_choice("name", name, SPLITS)
        self.prepare()
        return SentimentSplit(self.store, self._rows[name], self._forms, masked=self.incomplete == "mask")

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
        forms = {name: self._forms[name] for name in modalities or self._forms}
        if not files or not set(files) <= set(forms):
            raise ValueError(f"`files` should name files for some of {list(forms)}. Found {list(files)}.")
        inputs = {}
        for name, form in forms.items():
            width = form.modality.shape[1]
            steps = read_sequence(Path(files[name]), width) if name in files else np.zeros((0, width), np.float32)
            unpadded = Form(
                Modality("sequence", (1, width)), form.statistics
            )  # as long as the sample, not as the longest
            inputs[name] = unpadded.inputs([steps], [0], train=False)
        return inputs

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        cache = None if self.cache is None else Path(self.cache)
        return open_source(self.name, Path(self.root), self.file, cache)

    def _split_rows(self) -> dict[SplitName, np.ndarray]:
        rows, left_out = split_samples(self._arrays, self.protocol)
        self.left_out = self._arrays["ids"][left_out].tolist()
        if self.drop_zeros:
            scores = self._arrays["scores"]
            rows = {name: split_rows[scores[split_rows] != 0] for name, split_rows in rows.items()}
        return rows

    def _form(self, name: str) -> Form:
        form = super()._form(name)
        return form if name in STANDARDISED else Form(form.modality)


class SentimentSplit(StoredSplit):
    """A split of MOSI or MOSEI, with the sentiment score of each sample in ``scores``, in [−3, 3]."""

    @property
    def scores(self) -> np.ndarray:
        """Sentiment score of each sample, shape (N,)."""
        return np.array([self.store.samples[row].extra["score"] for row in self.rows])


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
    check_choice("data", name, PUBLISHED)
    path = find_source(name, Path(source), file)
    folder, arrays, made = convert_once(name, path, Path(dest))
    classes = _CLASSES[7]
    found = sentiment_classes(arrays["scores"])
    counts: dict[str, dict[str, int]] = {}
    for code, split in enumerate(SPLITS):
        numbers = np.bincount(found[arrays["split"] == code], minlength=len(classes)).tolist()
        counts[split] = dict(zip(classes, numbers, strict=True))
    return PrepareResult(folder, classes, counts, (), len(found) if made else 0, _notes(arrays))


def _notes(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    notes = []
    for place, name in enumerate(MODALITIES):
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


def split_samples(arrays: Mapping[str, np.ndarray], protocol: str) -> tuple[dict[SplitName, np.ndarray], np.ndarray]:
    """Positions of the samples of each split, and of those left out."""
    split, videos = np.asarray(arrays["split"]), np.asarray(arrays["videos"])
    rows: dict[SplitName, np.ndarray] = {name: np.flatnonzero(split == code) for code, name in enumerate(SPLITS)}
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
    """Time steps of the longest sequence."""
    return max(1, int(np.diff(arrays[f"{name}_offsets"]).max()))
