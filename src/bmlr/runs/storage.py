"""Checkpoints, weights and JSON files of runs.

All are written atomically and checked when read. A checkpoint is an ordinary torch file, a zip archive, with the
SHA-256 sum of all before it in the archive's comment. The archive's own CRC-32 sums do not suffice: ``torch.load``
ignores them, and ``ZipFile.testzip`` covers the entries but not their directory, where one flipped bit (the mark of a
folder) makes torch return uninitialised memory.

Weights carry the SHA-256 sum of their tensors in the metadata of the safetensors file, a JSON file that of its entries.
"""

from __future__ import annotations

import hashlib
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from bmlr._files import atomic_write, atomic_write_text, has_valid_checksum, json_text, parse_json, with_checksum

_END = b"PK\x05\x06"  # begins the last record of a zip archive, whose last two bytes are the length of the comment
_END_LENGTH = 22
_MARK = b"sha256:"
_COMMENT_LENGTH = len(_MARK) + 64
_SUM = "sha256"


class DamagedFileError(ValueError):
    """A file was damaged, cut off or changed after it was written."""


def write_checkpoint(path: Path, content: Mapping[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint and its checksum atomically.

    Args:
        path: The file.
        content: Plain data and tensors.
        previous: New place of the checkpoint now at ``path``, moved there once the new one is whole.
    """

    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:  # torch raises it in place of the system's error, as of a full disk
            if isinstance(error.__context__, OSError):
                raise OSError(*error.__context__.args) from error
            raise
        _seal(temporary)

    atomic_write(path, write, previous=previous)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing its content.

    The memory it takes is bounded by its size.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFileError: If it cannot be read, or its checksum is wrong or, in a checkpoint of a run, missing.
    """
    has_checksum = _fits_checksum(path)
    try:
        _check_archive(path)
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a damaged or hostile file causes
        raise DamagedFileError(f"{path} cannot be read as a checkpoint.") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} should hold a dictionary. Found {type(content).__name__}.")
    if not has_checksum and "bmlr_run" in content:
        raise DamagedFileError(f"{path} has no checksum.")
    return content


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and their checksum to a safetensors file atomically."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = save(plain, {_SUM: _tensor_sum(plain)})

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    atomic_write(path, write)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors from a safetensors file.

    Files of other programs need no checksum.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is no safetensors file, or its checksum is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        tensors, metadata = _read_safetensors(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedFileError(f"{path} cannot be read as weights: {error}") from error
    if metadata is not None and metadata.get(_SUM) != _tensor_sum(tensors):
        raise DamagedFileError(f"{path} does not fit its checksum.")
    return tensors


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and metadata of a safetensors file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors opens no file in a folder whose name is no UTF-8
        content = path.read_bytes()
        tensors = load(content)
        return tensors, parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")].decode()).get("__metadata__")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  (no dictionary)


def write_json(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write entries and their checksum to a JSON file atomically.

    Returns:
        What was written.
    """
    plain = with_checksum(parse_json(json_text(content)))
    atomic_write_text(path, json_text(plain) + "\n")
    return {**content, "checksum": plain["checksum"]}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of :func:`write_json`.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is no JSON object, or its checksum is missing or wrong.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not a JSON file: {error}.") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} should hold a JSON object. Found {type(content).__name__}.")
    if not has_valid_checksum(content):
        raise DamagedFileError(f"{path} does not fit its checksum: it was changed or damaged after it was written.")
    return content


def _seal(path: Path) -> None:
    """Append the checksum of a zip archive as its comment."""
    with path.open("r+b") as file:
        file.seek(-_END_LENGTH, 2)
        end = file.read(_END_LENGTH)
        if not (end.startswith(_END) and end.endswith(b"\0\0")):
            raise RuntimeError(f"{path} does not end as a zip archive of torch does.")
        file.seek(-2, 2)
        file.write(_COMMENT_LENGTH.to_bytes(2, "little"))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, 2)
        file.write(_MARK + digest.encode())


def _fits_checksum(path: Path) -> bool:
    """Whether a zip archive has its checksum as its comment.

    Raises:
        DamagedFileError: If the checksum is wrong.
    """
    length = path.stat().st_size - _COMMENT_LENGTH
    if length < _END_LENGTH:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(length)
        comment = file.read()
        if not comment.startswith(_MARK):
            return False
        file.seek(0)
        while length:
            block = file.read(min(length, 1 << 20))
            digest.update(block)
            length -= len(block)
    if comment != _MARK + digest.hexdigest().encode():
        raise DamagedFileError(f"{path} does not fit its checksum.")
    return True


def _check_archive(path: Path) -> None:
    """Raise if an archive unpacks to more than its size."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        # Entries may also overlap: a thousand names for the same megabyte.
        if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("It unpacks to more than its size.")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                _check_names(archive.read(entry))


def _check_names(content: bytes) -> None:
    """Reject ``bytearray``.

    It is the one callable allowed by ``weights_only`` that can allocate without bound.
    """
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "GLOBAL" and str(argument).endswith(" bytearray"):
            raise ValueError("It asks for a bytearray.")


def _tensor_sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
