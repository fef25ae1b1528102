"""Read text from ``.txt`` files, and from cells of tables."""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bmlr.data._base import Modality
from bmlr.data.readers._base import FileContent, FileReader, Interval
from bmlr.data.readers._files import check_file

_MAX_BYTES = 1 << 24  # of a text file; a larger one is a corpus or no text


@dataclasses.dataclass(frozen=True)
class TextReader(FileReader):
    """Reader of text files in UTF-8, as bytes; data sets tokenise them.

    Attributes:
        undecodable: What becomes of a file with bytes that are no UTF-8: it is refused, or they are replaced by ``�``.
    """

    version: ClassVar[int] = 1
    undecodable: Literal["refuse", "replace"] = "refuse"

    @property
    def modality(self) -> Modality:
        """Bytes (N,), N by the text."""
        return Modality("text", (-1,))

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Everything the array depends on besides the file, as JSON."""
        default = {"undecodable": "refuse"}  # unnamed, so that folders prepared without this parameter stay the same
        return {name: value for name, value in super().parameters.items() if default.get(name) != value}

    def __call__(self, path: Path, interval: Interval | None = None) -> FileContent:
        """Read a text file."""
        path = Path(path)
        check_file(path, "text file", text=True)
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path} should be the text of one sample, 16 MB at most.")
        try:
            text = path.read_bytes().decode("utf-8-sig", "strict" if self.undecodable == "refuse" else "replace")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} should be text in UTF-8: {error.reason} at byte {error.start}.") from error
        if not text.strip():
            raise ValueError(f"{path} holds no text.")
        return FileContent(text_to_bytes(text))


def text_to_bytes(text: str) -> np.ndarray:
    """A text as it is stored, with composed letters (NFC), in UTF-8.

    Example:
        >>> bytes_to_text(text_to_bytes(" tschüs "))
        'tschüs'
    """
    return np.frombuffer(unicodedata.normalize("NFC", text).strip().encode(errors="replace"), dtype=np.uint8)


def is_text(value: Path | str) -> bool:
    """Whether a value is a text itself; a name that ends in .txt is that of a file.

    Example:
        >>> is_text("a red bird"), is_text("bird.txt"), is_text(Path("bird"))
        (True, False, False)
    """
    return isinstance(value, str) and not value.lower().endswith(".txt")


def bytes_to_text(values: np.ndarray) -> str:
    """A stored text."""
    return values.tobytes().decode(errors="replace")


def describe_text(text: str) -> dict[str, Any]:
    """Entry of a cell's text in place of that of a file."""
    content = text.encode(errors="replace")
    return {"name": "", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
