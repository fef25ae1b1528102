"""Cache of arrays on disk, memory-mapped, by the hash of their parameters."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._files import (
    atomic_write_text,
    file_checksum,
    has_valid_checksum,
    json_text,
    parse_json,
    text_checksum,
    with_checksum,
)

MANIFEST = "manifest.json"

_VERSION = 1
# Errors of the machine or the moment; of others a file may be the cause.
_MACHINE = {
    number
    for name in ("EACCES", "EPERM", "EIO", "ESTALE", "ENOMEM", "EMFILE", "ENFILE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN")
    if (number := getattr(errno, name, None)) is not None
}
_ATTEMPTS = 10  # at reading an entry that another process may be replacing at the same moment


def cache_root() -> Path:
    """Folder of the cache: the environment variable ``BMLR_CACHE``, or ``~/.cache/bmlr``.

    Raises:
        OSError: If there is no home folder, as in a container run by another user.
    """
    folder = Path(os.environ.get("BMLR_CACHE") or "~/.cache/bmlr")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise OSError(
            "There is no home folder for the cache: HOME is not set. Set the environment variable `BMLR_CACHE` to a "
            "folder that can be written."
        ) from error


def cached_arrays(
    kind: str,
    key: Mapping[str, Any],
    build: Callable[[], Mapping[str, np.ndarray]],
    root: Path | None = None,
    *,
    verify: bool = False,
) -> dict[str, np.ndarray]:
    """Load arrays from the cache, or build and store them.

    An entry is a folder ``<kind>-<hash of key>`` with one ``.npy`` file per array and a ``manifest.json`` (key,
    shapes, sizes, SHA-256 checksums, its own included). It is written under a temporary name and renamed, so that any
    number of processes may ask for it at once. An entry with a missing file, a file of another size or a manifest
    with a wrong checksum is built again.

    Args:
        kind: First part of the folder's name: letters, digits, ``-`` and ``_``.
        key: Everything the arrays depend on, as JSON (tuples count as lists).
        build: Builds the arrays; their names are names of files.
        root: Folder of the cache; ``BMLR_CACHE`` or ``~/.cache/bmlr`` by default.
        verify: Compare the files' SHA-256 checksums too, which reads them whole.

    Returns:
        The arrays by name, memory-mapped and read-only. Files are never unpickled.

    Raises:
        OSError: If the folder cannot be written; the message says how to choose another.
        ValueError: If ``kind``, ``key`` or the name or type of an array cannot be stored.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arrays = cached_arrays("squares", {"n": 4}, lambda: {"x": np.arange(4) ** 2}, Path(folder))
        ...     arrays["x"].tolist()
        [0, 1, 4, 9]
    """
    key = plain_key(key)
    folder = entry_folder(kind, key, cache_root() if root is None else Path(root))
    arrays = _load(folder, key, verify=verify)
    if arrays is not None:
        return arrays
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        _make_folder(temporary)  # before the work of building, which an unwritable folder would waste
        _write(temporary, key, build())
        for _ in range(_ATTEMPTS):
            _put_in_place(temporary, folder, key, verify=verify)
            arrays = _load(folder, key, verify=verify)
            if arrays is not None:
                return arrays
            time.sleep(0.05)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    raise OSError(f"The cache entry {folder} was changed by another program while it was made. Please try again.")


def entry_folder(kind: str, key: Mapping[str, Any], root: Path) -> Path:
    """Folder ``<kind>-<hash of key>`` in ``root``."""
    digest = hashlib.sha256(json.dumps([_VERSION, key], sort_keys=True).encode()).hexdigest()[:20]
    return Path(root) / f"{checked_name('kind', kind)}-{digest}"


def plain_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a key to and from JSON, as manifests hold it.

    Raises:
        ValueError: If JSON cannot hold it.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(key), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Parameter `key` should hold JSON values: {error}. Found `key = {key}`.") from error
    return plain


def checked_name(parameter: str, name: str) -> str:
    """Check a part of a file's name.

    Raises:
        ValueError: If some system does not allow it.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise ValueError(f"`{parameter}` should consist of letters, digits, '-' and '_'. Found {name!r}.")
    return name


def _load(folder: Path, key: Mapping[str, Any], *, verify: bool = False) -> dict[str, np.ndarray] | None:
    """Arrays of a valid entry, else None."""
    entry = read_entry(folder, key, verify=verify)
    return None if entry is None else entry[1]


def read_entry(
    folder: Path, key: Mapping[str, Any] | None = None, *, verify: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Read manifest and arrays of an entry.

    Returns:
        None if the entry is absent, damaged or of another key.

    Args:
        folder: Folder of the entry.
        key: Expected key, from :func:`plain_key`; None accepts any.
        verify: Compare the files' SHA-256 checksums too, which reads them whole.

    Raises:
        OSError: If it cannot be read now, which is no damage.
    """
    try:
        manifest = read_manifest(folder)
        if not has_valid_checksum(manifest) or manifest["version"] != _VERSION:
            return None
        if key is not None and manifest["key"] != key:
            return None
        return manifest, {
            checked_name("array name", name): _load_array(folder / f"{name}.npy", entry, verify)
            for name, entry in manifest["arrays"].items()
        }
    except Exception as error:  # damaged files make JSON and numpy raise a dozen kinds
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise type(error)(
                f"{folder} cannot be read now: {error.strerror or error}. It may be undamaged."
            ) from error
        return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of an entry, unchecked."""
    manifest: dict[str, Any] = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def content_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 checksum of the arrays and samples of an entry.

    Versions, options and file sizes in the manifest may differ where the content is the same, so they are left out.
    The arrays are not read: the manifest holds a checksum of each.
    """
    sums = {name: entry["sha256"] for name, entry in manifest["arrays"].items()}
    content = [sums, manifest.get("classes"), manifest.get("modalities"), manifest.get("samples")]
    return text_checksum(json.dumps(content, sort_keys=True))


def _load_array(path: Path, entry: Mapping[str, Any], verify: bool) -> np.ndarray:
    if path.stat().st_size != entry["bytes"] or (verify and file_checksum(path) != entry["sha256"]):
        raise ValueError(f"{path} is damaged.")
    empty = 0 in entry["shape"]  # an empty array cannot be mapped
    array: np.ndarray = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    if list(array.shape) != entry["shape"] or array.dtype.str != entry["dtype"]:
        raise ValueError(f"{path} is damaged.")
    array.flags.writeable = False
    return array


def oserror_reason(error: OSError) -> str:
    """Reason why a file could not be written.

    NumPy's errors on a full disk give two numbers only.
    """
    return error.strerror or f"the disk is full, it seems: {error}"


def _unwritable(folder: Path, error: OSError) -> OSError:
    return type(error)(
        f"The cache folder {folder} cannot be written ({oserror_reason(error)}). "
        "Set the environment variable `BMLR_CACHE` to a folder that can."
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder.parent, error) from error


def _write(folder: Path, key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays, and the manifest last."""
    for name, array in arrays.items():
        checked_name("array name", name)
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f"Array '{name}' should hold numbers or text. Found dtype {np.asarray(array).dtype}.")
    try:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        write_manifest(folder, key, {name: np.asarray(array) for name, array in arrays.items()})
    except OSError as error:
        raise _unwritable(folder.parent, error) from error


def write_manifest(folder: Path, key: Mapping[str, Any], arrays: Mapping[str, np.ndarray], **about: Any) -> None:
    """Write the manifest of arrays already in ``folder``, with the entries ``about``."""
    entries = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        entries[name] = {
            "shape": list(array.shape),
            "dtype": array.dtype.str,
            "bytes": path.stat().st_size,
            "sha256": file_checksum(path),
        }
    manifest = parse_json(json_text({"version": _VERSION, "key": key, "arrays": entries, **about}))
    atomic_write_text(folder / MANIFEST, json_text(with_checksum(manifest), indent=1))


def _put_in_place(temporary: Path, folder: Path, key: Mapping[str, Any], *, verify: bool) -> None:
    """Rename a new entry to its final name.

    An entry that another process has finished stays.
    """
    if not temporary.exists() or _load(folder, key, verify=verify) is not None:
        return
    damaged = temporary.with_name(f"{temporary.name}.damaged")
    try:
        if folder.exists():
            folder.rename(damaged)
        temporary.rename(folder)
    except OSError:  # another process was faster; the caller reads its entry
        return
    finally:
        shutil.rmtree(damaged, ignore_errors=True)
