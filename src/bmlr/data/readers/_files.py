"""Checks before decoding, and errors of bytes or machine.

A prepared data set leaves a clip out for good if its bytes are at fault. So a ValueError of a reader is a verdict about
the bytes. Anything that may be different the next time (permissions, a share that is away, memory, a package that
cannot be loaded) leaves a reader as the OSError, MemoryError or other error that it is.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bmlr._files import file_checksum, text_checksum

_HEAD = 512  # bytes looked at
_POINTER_BYTES = 1024  # a Git LFS pointer is smaller, by its specification
_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")
_MIN_TEXT = 16  # bytes; the heads of some formats begin with a few letters
_UNFINISHED = {".part", ".partial", ".crdownload", ".download", ".aria2", ".ytdl", ".tmp"}
_PROBE = 1 << 28  # bytes of memory that a healthy machine can give

POINTER_ADVICE = "Install git-lfs and run `git lfs pull` in the clone that it comes from"


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer.

    Of a folder the first file is looked at. False if it cannot be read.
    """
    try:
        path = next(iter(_files_of(path)), path)
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or not 0 < state.st_size < _POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except (OSError, ValueError):
        return False  # reported when the file is read


def check_file(path: Path, noun: str, *, text: bool = False) -> bytes:
    """Check that a file may hold data of any format.

    Args:
        path: The file.
        noun: What it should be, for messages: ``image``, ``audio file``.
        text: Whether the format is text.

    Returns:
        The first bytes of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, a pipe or device, empty, a Git LFS pointer, a web page, an unfinished download
            or, unless ``text``, plain text.
        OSError: If it cannot be read now.
    """
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"There is no {noun} {path}.") from error
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe, socket or device"  # whose end may never come
        raise ValueError(f"{path} should be a file. It is {kind}.")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    check_head(path, head, text=text)
    if path.suffix.lower() in _UNFINISHED:
        raise ValueError(f"{path} cannot be read: its name says that its download is unfinished.")
    return head


def check_head(path: Path, head: bytes, *, text: bool = False) -> None:
    """Raise a ValueError if a file beginning with ``head`` holds no data."""
    if reason := _describe_head(head[:_HEAD], text=text):
        raise ValueError(f"{path} cannot be read: it is {reason}.")


def _describe_head(head: bytes, *, text: bool) -> str | None:
    """Describe a file by its first bytes, if it cannot hold data."""
    if not head:
        return "empty"
    if head.startswith(_POINTER):
        return f"a Git LFS pointer, a short text in place of the file. {POINTER_ADVICE}"
    bare = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if bare.lower().startswith(_MARKUP):
        return f"a web page, perhaps the message of a failed download: {_first_line(bare)!r}"
    if not text and len(head) >= _MIN_TEXT and _is_text(head):
        return f"plain text: {_first_line(bare)!r}"
    return None


def _is_text(head: bytes) -> bool:
    try:
        letters = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter is cut at the end
            return False
        letters = head[: error.start].decode()
    return all(letter.isprintable() or letter in "\r\n\t" for letter in letters)


def _first_line(head: bytes) -> str:
    return next(iter(head.decode(errors="replace").splitlines()), "")[:60]


def source_bytes(path: Path) -> int:
    """Size in bytes of a file or of a folder's files.

    Raises:
        OSError: If there is no such file or folder.
    """
    return sum(file.stat().st_size for file in _files_of(path))


def describe_source(path: Path) -> dict[str, Any]:
    """Name, size and checksum of a file or a folder of frames.

    The keys are ``name``, ``bytes`` and ``sha256``.

    Raises:
        OSError: If it cannot be read now.
    """
    if not path.is_dir():
        return {"name": path.name, "bytes": source_bytes(path), "sha256": file_checksum(path)}
    checksums = "\n".join(map(file_checksum, _files_of(path)))
    return {"name": path.name, "bytes": source_bytes(path), "sha256": text_checksum(checksums)}


def _files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


@contextlib.contextmanager
def blame_bytes(path: Path, noun: str, describe: Callable[[Exception], str] = str) -> Iterator[None]:
    """Turn a decoder's errors into ValueErrors naming the file.

    Decoders hardly tell damaged bytes from a disk that fails. So the file is read through before it is blamed.

    Args:
        path: The file being decoded.
        noun: What it should be, for messages.
        describe: Gives the reason of an error.

    Raises:
        ValueError: If the bytes are at fault.
        OSError: If the file cannot be read now.
        MemoryError: If memory is short.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # decoders raise a dozen kinds
        if isinstance(error, OSError) and error.errno and not _is_ffmpeg(error):
            raise
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == 12:  # ENOMEM
            bytearray(_PROBE)  # raises a MemoryError if memory is short; else the file asks for too much
        _read_through(path)
        raise ValueError(f"{path} cannot be read{noun and f' as {noun}'}: {describe(error).rstrip('.')}.") from error


def _is_ffmpeg(error: OSError) -> bool:
    """Whether an error is FFmpeg's.

    Its demuxers use the system's numbers for damaged files too.
    """
    return type(error).__module__.partition(".")[0] == "av"


def _read_through(path: Path) -> None:
    """Read a file to its end, or raise an OSError."""
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass
