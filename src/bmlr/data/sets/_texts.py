"""Tokens of the texts of a store."""

from __future__ import annotations

import numpy as np

from bmlr.data._base import Modality
from bmlr.data.readers._text import bytes_to_text
from bmlr.data.sets._forms import Form
from bmlr.data.store._store import Store
from bmlr.data.transforms._tokens import Tokeniser, Vocabulary, describe_cut


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
    texts = (bytes_to_text(store.values(name, row)) for row in rows.tolist())
    return Vocabulary.of_shared(texts, size, f"The texts of '{name}' in the training split of {store.folder}")


def text_form(store: Store, name: str, tokeniser: Tokeniser, max_tokens: int) -> tuple[Form, str | None]:
    """How stored texts become tokens, and a remark on those that are cut off."""
    present = np.flatnonzero(store.present(name)).tolist()
    lengths = [tokeniser.encode(bytes_to_text(store.values(name, row)), max_tokens)[1] for row in present]
    modality = Modality("text", (min(max(lengths), max_tokens),), tokeniser.num_tokens, tokeniser.padding)
    form = Form(modality, tokeniser=tokeniser, max_tokens=max_tokens)
    return form, describe_cut(name, lengths, max_tokens, "--data.max_tokens")
