"""Tokens of texts: by a vocabulary of words, or by a tokeniser of Hugging Face."""

from __future__ import annotations

import collections
import functools
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_UNKNOWN = 1
_FIRST_WORD = 2  # index; before it are padding and unknown words
#: A word, a letter of a script that writes no spaces, or another sign.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")


class Tokeniser(ABC):
    """Indices of the tokens of a text.

    Attributes:
        num_tokens: Number of different indices.
        padding: Index that fills up shorter texts.
    """

    num_tokens: int
    padding: int

    @abstractmethod
    def encode(self, text: str, max_tokens: int) -> tuple[np.ndarray, int]:
        """Indices of the first tokens, shape (T,), int64, and the number of tokens of the whole text."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Everything that makes it again, as JSON."""


def describe_cut(name: str, lengths: Sequence[int], max_tokens: int, option: str) -> str | None:
    """A remark on texts that are cut off, or None.

    Args:
        name: The modality.
        lengths: Number of tokens of each text.
        max_tokens: Number of tokens that are used.
        option: What takes more.
    """
    longer = sum(length > max_tokens for length in lengths)
    if not longer:
        return None
    return (
        f"{longer} of {len(lengths)} texts of '{name}' have more than {max_tokens} tokens, up to {max(lengths)}. Their "
        f"first {max_tokens} are used; {option} takes more."
    )


class Vocabulary(Tokeniser):
    """Words by their index; 0 is padding, 1 any other word.

    Words are compared without case. Each sign is a word, as is each Chinese character or Japanese kana.

    Args:
        words: The words, from index 2.

    Example:
        >>> vocabulary = Vocabulary.of_texts(["A red bird.", "a blue bird"], 100)
        >>> vocabulary.words, vocabulary.encode("The bird, a bird", 3)
        (('a', 'bird'), (array([1, 3, 1]), 5))
    """

    padding = 0

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)
        self.num_tokens = len(self.words) + _FIRST_WORD
        self._indices = {word: index for index, word in enumerate(self.words, _FIRST_WORD)}

    @classmethod
    def of_texts(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """The most frequent words of texts.

        Words of one text only are left out: they are what the index of unknown words is trained by.
        """
        counts = collections.Counter(word for text in texts for word in set(split_words(text)))
        frequent = sorted((-count, word) for word, count in counts.items() if count > 1)
        return cls(sorted(word for _, word in frequent[:size]))

    @classmethod
    def of_shared(cls, texts: Iterable[str], size: int, subject: str) -> Vocabulary:
        """Words of texts; see :meth:`of_texts`.

        Raises:
            ValueError: If no word is in two texts; ``subject`` says of what.
        """
        vocabulary = cls.of_texts(texts, size)
        if not vocabulary.words:
            raise ValueError(f"{subject} should share words. No word is in two of them.")
        return vocabulary

    def encode(self, text: str, max_tokens: int) -> tuple[np.ndarray, int]:
        """Indices of the first words, and the number of all."""
        words = split_words(text) or [""]  # a text without a word is unknown, not padding
        return np.array([self._indices.get(word, _UNKNOWN) for word in words[:max_tokens]], dtype=np.int64), len(words)

    def as_dict(self) -> dict[str, Any]:
        """The words."""
        return {"words": list(self.words)}


class HuggingFaceTokeniser(Tokeniser):
    """A tokeniser of Hugging Face, as the JSON text that describes it whole.

    Args:
        name: Name of the checkpoint on the hub, or its folder.
        description: Content of its ``tokenizer.json``.
        padding: Index of its token of padding.
    """

    def __init__(self, name: str, description: str, padding: int) -> None:
        import tokenizers

        self.name, self.description, self.padding = name, description, padding
        self._tokenizer = tokenizers.Tokenizer.from_str(description)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.num_tokens = max(self._tokenizer.get_vocab_size(with_added_tokens=True), padding + 1)

    def encode(self, text: str, max_tokens: int) -> tuple[np.ndarray, int]:
        """Indices of the first tokens, special ones included, and the number of all."""
        whole = self._tokenizer.encode(text)
        length = len(whole.ids)
        if length > max_tokens:
            self._tokenizer.enable_truncation(max_tokens)
            whole = self._tokenizer.encode(text)
            self._tokenizer.no_truncation()
        return np.array(whole.ids or [self.padding], dtype=np.int64), length

    def as_dict(self) -> dict[str, Any]:
        """Its name and description."""
        return {"name": self.name, "description": self.description, "padding": self.padding}


@functools.lru_cache(maxsize=4)
def load_tokeniser(name: str) -> HuggingFaceTokeniser:
    """The tokeniser of a checkpoint of Hugging Face.

    Args:
        name: Name on the hub, or a folder.

    Raises:
        ImportError: If Transformers is not installed.
        ValueError: If there is no such tokeniser, or it cannot be kept in a file.
    """
    import transformers

    folder = Path(name).expanduser()
    place = str(folder) if folder.is_dir() else name
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ValueError(f"There is no tokeniser hf/{name}: {reason}.") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None or loaded.pad_token_id is None:
        lacks = "is of the slow kind, which no file describes" if backend is None else "has no token of padding"
        raise ValueError(f"The tokeniser hf/{name} {lacks}: take that of another checkpoint.")
    return HuggingFaceTokeniser(name, backend.to_str(), int(loaded.pad_token_id))


def tokeniser_of(entry: Mapping[str, Any]) -> Tokeniser:
    """Make a tokeniser again of what :meth:`Tokeniser.as_dict` gave."""
    if "words" in entry:
        return Vocabulary(entry["words"])
    return HuggingFaceTokeniser(**entry)


def split_words(text: str) -> list[str]:
    """Words and signs of a text, without case.

    Example:
        >>> split_words("Don't stop! 東京")
        ['don', "'", 't', 'stop', '!', '東', '京']
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
