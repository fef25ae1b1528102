"""Data sets read from a store of decoded samples."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bmlr._checks import check_choice
from bmlr._files import text_checksum
from bmlr._random import mixed_seed
from bmlr.batch import Batch, LateInput
from bmlr.data._base import SPLITS, Modality, MultimodalData, Preprocessing, Split, SplitName, check_files
from bmlr.data._group_split import check_filled
from bmlr.data.readers._text import bytes_to_text, is_text
from bmlr.data.sets._forms import FileForms, Form, is_colour, sound_of_video
from bmlr.data.sets._standardise import feature_statistics
from bmlr.data.sets._texts import build_vocabulary, text_form
from bmlr.data.store._options import PrepareOptions, PrepareResult
from bmlr.data.store._store import Store, find_store, open_store
from bmlr.data.store._targets import make_task
from bmlr.data.transforms._tokens import HuggingFaceTokeniser, Tokeniser, load_tokeniser, tokeniser_of
from bmlr.encoders.pretrained import EncoderInput
from bmlr.tasks import Task


class StoredSplit(Split):
    """Samples of a store, read and transformed batch by batch.

    Args:
        store: The prepared data.
        rows: Indices of the samples in the store, shape (N,).
        forms: How the stored values of each modality become inputs.
        augment: Use the random transforms of images and frames in training.
        masked: Mark absent modalities in ``present``.

    Attributes:
        ids: Name of each sample.
        present: Boolean mask, shape (N,), of each modality absent from some sample; None where all are complete.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        forms: Mapping[str, Form],
        *,
        augment: bool = True,
        masked: bool = True,
    ) -> None:
        self.store, self.rows, self.forms, self.augment = store, np.asarray(rows, dtype=np.int64), forms, augment
        self.targets = torch.from_numpy(store.targets[self.rows])
        self.groups = [store.samples[row].group for row in self.rows]
        self.ids = [store.samples[row].id for row in self.rows]
        masks = {name: store.present(name)[self.rows] for name in forms} if masked else {}
        self.present = {name: mask for name, mask in masks.items() if not mask.all()} or None

    def batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The samples at ``indices``, in that order.

        With ``augment`` images and frames are cropped and mirrored at random, and frames are drawn from their segments.
        """
        return self._batch(indices, Form.inputs, augment=augment, seed=seed)

    def late_batch(self, indices: Sequence[int], *, augment: bool = False, seed: int = 0) -> Batch:
        """The same, with images, frames and spectrograms as they are stored; crops are drawn already."""
        return self._batch(indices, Form.late_inputs, augment=augment, seed=seed)

    def _batch(
        self, indices: Sequence[int], convert: Callable[..., Tensor | LateInput], *, augment: bool, seed: int
    ) -> Batch:
        positions = np.asarray(indices, dtype=np.int64)
        seeds = [mixed_seed(seed, int(position)) for position in positions]
        inputs = {
            name: convert(
                form,
                [self.store.values(name, row) for row in self.rows[positions]],
                seeds,
                train=augment and self.augment,
            )
            for name, form in self.forms.items()
        }
        present = {name: torch.from_numpy(mask[positions]) for name, mask in (self.present or {}).items()}
        return Batch(inputs, self.targets[positions], present or None, torch.from_numpy(positions))

    def texts(self, name: str, indices: Sequence[int]) -> list[str] | None:
        """The texts of a modality as they were written, empty where a sample has none; None of other modalities."""
        if self.forms[name].tokeniser is None:
            return None
        return [bytes_to_text(self.store.values(name, row)) for row in self.rows[np.asarray(indices, dtype=np.int64)]]


class StoredData(MultimodalData):
    """A data set read from a store.

    A subclass says how samples are split.

    Args:
        root: The folder that ``bmlr prepare`` made, or its parent if that holds no other of this data set.
        protocol: ``clean`` (no group in two splits) or ``paper`` (the published split).

    Raises:
        ValueError: If a parameter is out of its range.
    """

    #: Frames per sample of a video.
    frames: int = 3
    #: Use the random transforms of images and frames in training.
    augment: bool = True
    #: Tokeniser of texts: ``words``, or ``hf/NAME-or-folder``.
    tokeniser: str = "words"
    #: Words of a vocabulary.
    vocabulary: int = 20_000
    #: Most tokens of a text.
    max_tokens: int = 256

    def __init__(self, root: str | Path, *, protocol: Literal["clean", "paper"] = "clean") -> None:
        self.root = str(Path(root).expanduser())
        self.protocol = check_choice("protocol", protocol, ("clean", "paper"))
        self.classes = ()
        self.modalities = {}
        self._task_name = "multiclass"
        self.remarks: list[str] = []

    @classmethod
    @abstractmethod
    def convert(cls, source: Path, dest: Path, options: PrepareOptions) -> PrepareResult:
        """Make the store in ``dest`` from the published files."""

    @abstractmethod
    def _split_rows(self, store: Store) -> dict[SplitName, np.ndarray]:
        """Indices of the samples of each split."""

    def prepare(self) -> None:
        """Open the prepared folder and split it; sets ``classes`` and ``modalities``.

        Raises:
            FileNotFoundError: If there is no prepared data; the message says how to make it.
            ValueError: If the data is damaged or another data set's, a split would be empty, or a modality is absent
                from or constant in the whole training split.
        """
        self.classes, self._task_name = self.store.classes, self.store.task
        self.modalities = {name: form.modality for name, form in self._forms.items()}

    @functools.cached_property
    def store(self) -> Store:
        """The prepared data."""
        return self._open()

    @property
    def content_digest(self) -> str:
        """SHA-256 checksum of the prepared samples, and of a tokeniser that is not made of them."""
        store = self.store
        if self.tokeniser == "words" or all(modality.kind != "text" for modality in store.modalities.values()):
            return store.digest
        tokeniser = load_tokeniser(self.tokeniser.removeprefix("hf/"))
        return text_checksum(json.dumps([store.digest, tokeniser.description, tokeniser.padding]))

    @functools.cached_property
    def _rows(self) -> dict[SplitName, np.ndarray]:
        rows = self._split_rows(self.store)
        check_filled(rows, SPLITS, str(self.store.folder))
        return rows

    @functools.cached_property
    def _forms(self) -> dict[str, Form]:
        return {name: self._form(name) for name in self.store.modalities}

    @property
    def task(self) -> Task:
        """What the prepared targets are."""
        return make_task(self._task_name, self.classes)

    def split(self, name: SplitName) -> StoredSplit:
        """One split."""
        check_choice("name", name, SPLITS)
        self.prepare()
        return StoredSplit(self.store, self._rows[name], self._forms, augment=self.augment, masked=self._masks())

    def load_files(self, files: Mapping[str, Any], modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Inputs of one new sample, read as the prepared ones were.

        There are no random transforms.

        Args:
            files: A file per modality, or a text itself, as a string. Without audio the sound of the video is read. A
                modality absent from some prepared sample may be left out; it is given as zeros.
            modalities: Modalities to read; None reads all.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file cannot be read as its modality, or ``files`` does not name what is needed.
        """
        known = self._file_forms
        forms = {name: known.forms[name] for name in modalities or known.forms}
        check_files(files, forms, optional=forms)  # sound of a video may be one of them
        paths: dict[str, Path | str] = {
            name: path if forms[name].tokeniser is not None and is_text(path) else Path(path)
            for name, path in files.items()
        }
        paths |= sound_of_video(paths, forms, known.optional)
        check_files(paths, forms, known.optional)
        return {
            name: form.inputs([known.read(name, paths.get(name))], [0], train=False) for name, form in forms.items()
        }

    @functools.cached_property
    def _file_forms(self) -> FileForms:
        """How new files are read and converted."""
        store = self.store
        self.prepare()
        return FileForms(
            forms=self._forms,
            stored=store.modalities,
            readers=store.key.get("readers", {}),
            optional=frozenset(name for name in self._forms if not store.present(name).all()),
        )

    def with_preprocessing(self, wanted: Mapping[str, EncoderInput]) -> StoredData:
        """The same with images and frames of an encoder's size, mean and deviation, and texts in its tokens."""
        known = self._file_forms
        forms = dict(known.forms)
        for name, inputs in wanted.items():
            modality = forms[name].modality
            if inputs.kind == modality.kind == "text":
                forms[name] = self._followed_text(name, forms[name], inputs)
                continue
            if inputs.kind != "image" or modality.kind not in {"image", "frames"} or modality.shape[-3] != 3:
                raise ValueError(self._cannot_follow(name, inputs, "were prepared as these"))
            if inputs.mean is None or inputs.size is None or inputs.size[0] != inputs.size[1]:
                raise ValueError(
                    self._cannot_follow(name, inputs, "can follow a square size, a mean and a deviation only")
                )
            shape = (*modality.shape[:-2], *inputs.size)
            forms[name] = dataclasses.replace(forms[name], modality=Modality(modality.kind, shape), images=inputs)
        followed = copy.copy(self)
        vars(followed).update(_forms=forms, _file_forms=dataclasses.replace(known, forms=forms))
        followed.modalities = {name: form.modality for name, form in forms.items()}
        return followed

    def preprocessing(self) -> Preprocessing:
        """Readers, stored forms and statistics."""
        forms = self._file_forms
        entries = {
            "stored": {name: dataclasses.asdict(modality) for name, modality in forms.stored.items()},
            "readers": dict(forms.readers),
            "optional": sorted(forms.optional),
            "task": self._task_name,
            "texts": {
                name: {"tokeniser": form.tokeniser.as_dict(), "max_tokens": form.max_tokens}
                for name, form in forms.forms.items()
                if form.tokeniser is not None
            },
        }
        statistics = {name: form.statistics for name, form in forms.forms.items() if form.statistics is not None}
        return Preprocessing(self.classes, self.modalities, entries, statistics)

    def restore_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Read new files by what a run has kept."""
        self.classes, self.modalities = preprocessing.classes, dict(preprocessing.modalities)
        entries = preprocessing.entries
        self._task_name = entries["task"]
        self._file_forms = FileForms(
            forms={
                name: _restored_form(modality, preprocessing.arrays.get(name), entries["texts"].get(name))
                for name, modality in preprocessing.modalities.items()
            },
            stored={name: Modality.from_dict(entry) for name, entry in entries["stored"].items()},
            readers=entries["readers"],
            optional=frozenset(entries["optional"]),
        )

    def _open(self) -> Store:
        store = open_store(find_store(Path(self.root), self.name))
        layout = store.key["key"].get("layout")
        if layout != self.name:
            raise ValueError(f"Parameter `root` should hold a prepared '{self.name}'. {store.folder} holds '{layout}'.")
        return store

    def _standardises(self, name: str) -> bool:
        """Whether the features of a modality are standardised."""
        return False

    def _masks(self) -> bool:
        """Whether absent modalities are marked in ``present``."""
        return True

    def _form(self, name: str) -> Form:
        store, train = self.store, self._rows["train"]
        if not store.present(name)[train].any():
            raise ValueError(f"The training split should have '{name}'. Every sample lacks it ({store.folder}).")
        stored = store.modalities[name]
        if stored.kind == "image":
            return Form(Modality("image", (3, *stored.shape[:2])))
        if stored.kind == "spectrogram":
            return Form(stored)
        if stored.kind == "text":
            return self._text_form(name, self._own_tokeniser(name), self.max_tokens)
        colours = stored.kind == "frames" and is_colour(store.arrays[name])
        statistics = feature_statistics(store, name, train) if self._standardises(name) and not colours else None
        if stored.kind == "frames":
            height, width, channels = stored.shape[1:]
            modality = Modality("frames", (self.frames, channels, height, width))
            return Form(modality, statistics, flip=0.0 if self._is_flow(name) else 0.5)
        if stored.kind == "vector":
            return Form(stored, statistics)
        longest = int(np.diff(store.offsets[name]).max())
        return Form(Modality("sequence", (longest, stored.shape[1])), statistics)

    def _is_flow(self, name: str) -> bool:
        """Whether frames have directions, which a mirror would reverse."""
        return False

    def _own_tokeniser(self, name: str) -> Tokeniser:
        """The tokeniser that the parameters of the data name."""
        if self.tokeniser != "words":
            return load_tokeniser(self.tokeniser.removeprefix("hf/"))
        return build_vocabulary(self.store, name, self._rows["train"], self.vocabulary)

    def _text_form(self, name: str, tokeniser: Tokeniser, max_tokens: int) -> Form:
        form, remark = text_form(self.store, name, tokeniser, max_tokens)
        if remark is not None:
            self.remarks.append(remark)
        return form

    def _followed_text(self, name: str, form: Form, wanted: EncoderInput) -> Form:
        """A text's form with the tokeniser of an encoder."""
        max_tokens = min(form.max_tokens, wanted.max_length or form.max_tokens)
        known = form.tokeniser
        if isinstance(known, HuggingFaceTokeniser) and known.name == wanted.tokenizer and max_tokens == form.max_tokens:
            return form  # also in a run, which has the tokeniser where the checkpoint is gone
        return self._text_form(name, load_tokeniser(str(wanted.tokenizer)), max_tokens)


def _restored_form(modality: Modality, statistics: np.ndarray | None, text: Mapping[str, Any] | None) -> Form:
    if text is None:
        return Form(modality, statistics)
    return Form(modality, tokeniser=tokeniser_of(text["tokeniser"]), max_tokens=text["max_tokens"])
