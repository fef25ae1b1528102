"""Read named arrays from one file: npz, safetensors, HDF5 or MATLAB."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bmlr._checks import nearest_name
from bmlr.data.readers._files import blame_bytes, check_file

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # bytes before the HDF5 of a MATLAB file of version 7.3
_MAX_NAMES = 40  # in a message


@dataclasses.dataclass(frozen=True)
class NamedArrays:
    """The arrays of a file, each read when it is asked for.

    Cells ``X`` of MATLAB that hold arrays are named ``X{1}``, ``X{2}`` and so on. Nothing in a file is executed.

    Attributes:
        path: The file.
        readers: Reader of each array, by name.
        matlab: Whether MATLAB wrote it, whose numbers are floating-point ones and whose samples may be columns.
    """

    path: Path
    readers: Mapping[str, Callable[[], Any]]
    matlab: bool = False

    def __contains__(self, name: object) -> bool:
        return name in self.readers

    def __getitem__(self, name: str) -> np.ndarray:
        """An array of numbers or texts, without axes of length 1 beyond the second.

        Raises:
            ValueError: If there is none of this name, or it holds anything else.
        """
        if name not in self.readers:
            raise ValueError(
                f"{self.path} has no array '{name}'. It has {self.names}.{nearest_name(name, self.readers)}"
            )
        with blame_bytes(self.path, "", functools.partial(_describe_error, name)):
            array = np.asarray(self.readers[name]())
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8")
        if array.dtype.kind not in "biufU":
            raise ValueError(
                f"Array '{name}' of {self.path} should hold real numbers or texts. Found {array.dtype}. Save it as an "
                "array of numbers."
            )
        return array

    @property
    def names(self) -> str:
        """Names of the arrays, for messages."""
        shown = list(self.readers)[:_MAX_NAMES]
        return ", ".join(shown) + (", …" if len(self.readers) > _MAX_NAMES else "") or "none"


def open_arrays(path: Path) -> NamedArrays:
    """Open a file of named arrays; its content tells the format.

    Args:
        path: A file of NumPy (npz), safetensors, HDF5 or MATLAB (version 5, 7 or 7.3).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of these, or damaged.
        ModuleNotFoundError: If the library that reads it is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder, "x.npz"), image=np.zeros((3, 4)), label=np.arange(3))
        ...     arrays = open_arrays(Path(folder, "x.npz"))
        ...     arrays.names, arrays["image"].shape
        ('image, label', (3, 4))
    """
    path = Path(path)
    head = check_file(path, "file of arrays")
    with blame_bytes(path, "a file of arrays"):
        if head.startswith(b"PK"):
            return NamedArrays(path, _npz(path))
        if head.startswith(_HDF5) or _is_matlab_hdf5(path, head):
            matlab = not head.startswith(_HDF5)
            return NamedArrays(path, _hdf5(path, matlab=matlab), matlab)
        if head.startswith(b"MATLAB 5.0"):
            return NamedArrays(path, _matlab(path), matlab=True)
        if head[8:9] == b"{":
            return NamedArrays(path, _safetensors(path))
    raise ValueError(
        f"{path} should be a file of NumPy (npz), safetensors, HDF5 or MATLAB. Its content is none of these."
    )


def _is_matlab_hdf5(path: Path, head: bytes) -> bool:
    if not head.startswith(b"MATLAB 7.3"):
        return False
    with path.open("rb") as file:
        file.seek(_USER_BLOCK)
        return file.read(len(_HDF5)) == _HDF5


def _describe_error(name: str, error: Exception) -> str:
    if "allow_pickle" in str(error):
        return (
            f"its array '{name}' holds Python objects, and reading these could execute code. Save an array of numbers "
            "or of texts"
        )
    return f"its array '{name}': {' '.join(str(error).split())}"


def _npz(path: Path) -> dict[str, Callable[[], Any]]:
    def read(name: str) -> Any:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays[name]

    # An open file is closed whatever is in it.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: functools.partial(read, name) for name in arrays.files}


def _safetensors(path: Path) -> dict[str, Callable[[], Any]]:
    from safetensors import safe_open

    def read(name: str) -> Any:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    with safe_open(path, framework="numpy") as file:
        return {name: functools.partial(read, name) for name in file.keys()}  # noqa: SIM118  (no dictionary)


def _matlab(path: Path) -> dict[str, Callable[[], Any]]:
    from scipy.io import loadmat

    content = loadmat(path, chars_as_strings=True)
    return dict(_entries({name: value for name, value in content.items() if not name.startswith("__")}))


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Readers of MATLAB's variables; cells of arrays have one for each, cells of texts are one array."""
    for name, value in content.items():
        if hasattr(value, "toarray"):  # a sparse matrix
            yield name, value.toarray
        elif getattr(value, "dtype", np.dtype(float)).kind == "O":
            cells = [cell.item() if getattr(cell, "size", 0) == 1 else cell for cell in value.ravel(order="F")]
            if cells and all(isinstance(cell, str) for cell in cells):
                yield name, functools.partial(np.array, cells)
            else:
                yield from _entries({f"{name}{{{i}}}": cell for i, cell in enumerate(value.ravel(order="F"), 1)})
        else:
            yield name, functools.partial(np.asarray, value)


def _hdf5(path: Path, *, matlab: bool) -> dict[str, Callable[[], Any]]:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{path} is an HDF5 file, and h5py, which reads it, is not installed. Run: pip install "bmlr[hdf5]"',
            name="h5py",
        ) from error

    def read(*places: str) -> Any:
        with h5py.File(path, "r") as file:
            values = [_hdf5_values(file[place], matlab=matlab) for place in places]
        return values[0] if len(values) == 1 else np.concatenate(values)

    with h5py.File(path, "r") as file:
        return {name: functools.partial(read, *places) for name, places in _hdf5_places("", file)}


def _hdf5_places(name: str, node: Any) -> Iterator[tuple[str, list[str]]]:
    """Names of the arrays below a node, and where each is; MATLAB keeps the content of cells in ``#refs#``."""
    import h5py

    if isinstance(node, h5py.Group) and "MATLAB_sparse" not in node.attrs:
        for child, content in node.items():
            if not child.startswith("#"):
                yield from _hdf5_places(f"{name}/{child}" if name else child, content)
    elif isinstance(node, h5py.Dataset) and h5py.check_ref_dtype(node.dtype):
        cells = [node.file[reference] for reference in node[()].ravel()]  # transposed, so in MATLAB's order
        if cells and all(cell.attrs.get("MATLAB_class") == b"char" for cell in cells):
            yield name, [cell.name for cell in cells]
        else:
            yield from ((f"{name}{{{number}}}", [cell.name]) for number, cell in enumerate(cells, 1))
    else:
        yield name, [node.name]


def _hdf5_values(node: Any, *, matlab: bool) -> Any:
    """Values of an array; MATLAB's are transposed in HDF5."""
    import h5py

    if isinstance(node, h5py.Group):  # MATLAB's sparse matrix
        from scipy.sparse import csc_matrix

        parts = tuple(node[part][()] if part in node else np.zeros(0) for part in ("data", "ir", "jc"))
        return csc_matrix(parts, shape=(int(node.attrs["MATLAB_sparse"]), len(parts[2]) - 1)).toarray()
    if h5py.check_string_dtype(node.dtype):
        return np.asarray(node.asstr()[()], dtype=str)
    values = node[()]
    if node.attrs.get("MATLAB_class") == b"char":
        return np.array(["".join(map(chr, letters)) for letters in values.T])
    return values.T if matlab else values
