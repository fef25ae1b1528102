"""One modality of a dataset of dictionaries, looked through item by item."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from bmlr.data._base import SPLITS, Modality
from bmlr.data.sets._dataset_items import as_values
from bmlr.data.transforms._tokens import Tokeniser, Vocabulary, describe_cut, split_words

_VOCABULARY = 20_000  # words of the texts of the training split
_KINDS: dict[int, Any] = {1: "vector", 2: "sequence", 3: "image", 4: "frames"}


class Column:
    """What is seen of one modality.

    Args:
        name: Name of the modality.
        key: Key of its values.

    Attributes:
        present: Whether each sample has it, by split.
    """

    def __init__(self, name: str, key: str) -> None:
        self.name, self.key = name, key
        self.present: dict[str, list[bool]] = {split: [] for split in SPLITS}
        self._first: np.ndarray | str | None = None
        self._longest = self._highest = 0
        self._texts: list[str] = []  # of the training split
        self._words: list[int] = []

    def add(self, value: Any, split: str, where: str) -> bytes:
        """Add the value of an item, and return it as bytes.

        Raises:
            ValueError: If it is neither numbers nor a text, or not of the kind of those before.
        """
        read = as_values(value, where)
        self.present[split].append(read is not None)
        if read is None:
            return b"none"
        if self._first is None:
            self._first = read
        if isinstance(read, str) != isinstance(self._first, str):
            raise ValueError(f"{where} should be {'a text' if isinstance(self._first, str) else 'numbers'}, as before.")
        if isinstance(read, str):
            self._words.append(len(split_words(read)))
            if split == "train":
                self._texts.append(read)
            return read.encode(errors="replace")
        self._longest = max(self._longest, len(read) if read.ndim else 1)
        if read.dtype.kind in "iu" and read.size:
            self._highest = max(self._highest, int(read.max()))
        return np.ascontiguousarray(read).tobytes()

    @property
    def lacks_some(self) -> bool:
        """Whether some sample lacks the modality."""
        return not all(all(mask) for mask in self.present.values())

    def make_vocabulary(self) -> Vocabulary | None:
        """Words of the texts of the training split; None of a modality of numbers.

        Raises:
            ValueError: If no sample of that split has the modality, or no word is in two texts.
        """
        if not any(self.present["train"]):
            raise ValueError(f"`train` should have '{self.key}'. Every item lacks it.")
        if not isinstance(self._first, str):
            return None
        return Vocabulary.of_shared(self._texts, _VOCABULARY, f"The texts '{self.key}' of `train`")

    def form(self, tokeniser: Tokeniser | None, max_tokens: int) -> Modality:
        """Form of the inputs.

        Raises:
            ValueError: If the values have too many dimensions.
        """
        if tokeniser is not None:
            longest = max(1, min(max(self._words), max_tokens))
            return Modality("text", (longest,), tokeniser.num_tokens, tokeniser.padding)
        first = np.atleast_1d(cast("np.ndarray", self._first))
        if first.ndim == 1 and first.dtype.kind in "iu" and self.key.endswith(("ids", "tokens")):
            return Modality("text", (self._longest,), self._highest + 1)
        if first.ndim not in _KINDS:
            raise ValueError(
                f"'{self.name}' should have at most 4 dimensions, as frames (T, C, H, W). Found shape {first.shape}."
            )
        shape = (self._longest, *first.shape[1:]) if first.ndim == 2 else first.shape
        return Modality(_KINDS[first.ndim], shape)

    def describe_cut(self, max_tokens: int) -> str | None:
        """A remark on texts that are cut off."""
        return describe_cut(self.name, self._words, max_tokens, "`max_tokens`")
