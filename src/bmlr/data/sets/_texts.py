"""Tokens of the texts of a store."""

from __future__ import annotations

import numpy as np

from bmlr.data._base import Modality
from bmlr.data.readers._text import bytes_to_text
from bmlr.data.sets._forms import Form
from bmlr.data.store._store import Store
from bmlr.data.transforms._tokens import Tokeniser, Vocabulary


def build_vocabulary(store: Store, name: str, rows: np.ndarray, size: int) -> Vocabulary:
    """The words of the training split.

    Args:
        store: The prepared data.
        name: The modality.
        rows: Samples of the training split.
        size: Most words.

    Raises:
        ValueError: If no word is in two texts.
    """
    vocabulary = Vocabulary.of_texts((bytes_to_text(store.values(name, row)) for row in rows.tolist()), size)
    if not vocabulary.words:
        raise ValueError(
            f"The texts of '{name}' in the training split of {store.folder} should share words. No word is in two of "
            "them."
        )
    return vocabulary


def text_form(store: Store, name: str, tokeniser: Tokeniser, max_tokens: int) -> tuple[Form, str | None]:
    """How stored texts become tokens, and a remark on those that are cut off."""
    present = np.flatnonzero(store.present(name)).tolist()
    lengths = [tokeniser.encode(bytes_to_text(store.values(name, row)), max_tokens)[1] for row in present]
    longer, longest = sum(length > max_tokens for length in lengths), max(lengths)
    remark = None
    if longer:
        remark = (
            f"{longer} of {len(lengths)} texts of '{name}' have more than {max_tokens} tokens, up to {longest}. Their "
            f"first {max_tokens} are used; --data.max_tokens takes more."
        )
    modality = Modality("text", (min(longest, max_tokens),), tokeniser.num_tokens, tokeniser.padding)
    return Form(modality, tokeniser=tokeniser, max_tokens=max_tokens), remark
