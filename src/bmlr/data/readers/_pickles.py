"""Read pickles of arrays without executing anything they contain.

Feature files of MOSI and MOSEI are published as pickles, and a pickle is a program: unpickling one runs whatever its
author wrote. This is a pickle machine of its own rather than a restriction of Python's. A 34-line unpickler restricted
by ``find_class`` was measured against this module's tests: it accepted 42 of 336 hostile or damaged files, took 32 MB
for one small file, and made NumPy raise an internal error. Python's unpickler can be made to change the permitted
functions, to reach registered extensions, and to allocate any amount of memory; none of this can be switched off.

One file on purpose, although it is long: the list of globals, the table of opcodes and the table of makers decide
together what is accepted, and a reviewer has to see all three.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from bmlr.data.readers._files import check_file

_MAX_PROTOCOL = 5
_MAX_DEPTH = 64  # of nested containers; deeper ones would exhaust Python's stack
_MAX_DIMENSIONS = 64
_MAPPED = 1 << 16  # bytes; longer values are views of the file, not copies

_DTYPES = re.compile(r"\?|b1|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,8}|O[48]?")
_OPCODES: Final = {operation.code: operation for operation in pickletools.opcodes}
_SCALARS: Final = (str, bytes, int, float, complex, bool, type(None))

#: Globals a pickle may name, in the spellings of all versions of Python and NumPy, and the maker of each.
_GLOBALS: Final = {
    f"{module}.{name}": name
    for name, modules in {
        "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "scalar": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
        "ndarray": ("numpy",),
        "dtype": ("numpy",),
        "encode": ("_codecs", "codecs"),
        "bytes": ("builtins", "__builtin__"),
        "bytearray": ("builtins", "__builtin__"),
        "complex": ("builtins", "__builtin__"),
        "set": ("builtins", "__builtin__"),
        "frozenset": ("builtins", "__builtin__"),
    }.items()
    for module in modules
}


def read_arrays_pickle(path: Path) -> dict[Any, Any]:
    """Read a pickled dictionary of arrays, numbers, strings, bytes and plain containers.

    Everything else is refused by its name. No function or class named in the file is looked up or called: the few of
    which arrays are made are recognised by name and replaced by this module's own. Work and memory are bounded by the
    size of the file.

    Arrays of Python objects are read if all elements are strings, bytes, numbers or None. Text of Python 2 is read as
    Latin-1.

    Args:
        path: A file of any pickle protocol, 0 to 5, written by any version of NumPy.

    Returns:
        The dictionary. Its large arrays are read-only views of the file, read from disk on use.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no pickle, is truncated or damaged, or holds anything else; the message gives the
            file and the reason.

    Example:
        >>> import pickle, tempfile, numpy as np
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "features.pkl"
        ...     _ = path.write_bytes(pickle.dumps({"train": {"audio": np.zeros((2, 3)), "id": ["a", "b"]}}))
        ...     content = read_arrays_pickle(path)
        >>> content["train"]["audio"].shape, content["train"]["id"]
        ((2, 3), ['a', 'b'])
    """
    path = Path(path)
    check_file(path, "file", text=True)  # pickles of protocol 0 are text
    with path.open("rb") as file:
        content = mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ
        )  # lives as long as any array that is a view of it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # unknown escapes in text
            result = _PickleMachine(content).read()
    except _Refusal as refusal:
        raise ValueError(
            f"{path} holds {refusal}, which is neither an array nor a plain value. It was refused; nothing was run."
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, Warning) as error:
        raise ValueError(f"{path} is not a whole pickle of arrays: {error}") from error
    if not isinstance(result, dict):
        raise ValueError(f"{path} should hold a dictionary. Found {type(result).__name__}.")
    return result


class _Refusal(Exception):  # noqa: N818  (never leaves this module)
    """Refusal of a value for which code would have to run."""


class _Global:
    """Name of a function or class in the pickle; never resolved."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        if name not in _GLOBALS:
            raise _Refusal(f"`{name}`")
        self.name, self.kind = name, _GLOBALS[name]


class _Array:
    """An array before its content was read."""

    __hash__ = None  # type: ignore[assignment]
    value: np.ndarray | None = None


class _Dtype:
    """Type of an array before its byte order was read."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, code: Any) -> None:
        if not (isinstance(code, str) and _DTYPES.fullmatch(code)):
            raise _Refusal(f"an array of type {code!r}")
        self.code, self.order = code, ""

    def numpy(self) -> np.dtype[Any]:
        """NumPy type."""
        # "O8" and "O4" tell the pointer size of the machine that wrote the file: no matter here.
        return np.dtype(object if self.code[0] == "O" else self.order + self.code)


class _Source:
    """Bytes of the file, as pickletools reads them.

    It refuses to read beyond the end before it allocates.
    """

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.position = content, 0
        self.mapped = False

    def read(self, size: int) -> bytes | memoryview:
        start, end = self.position, self.position + size
        if not 0 <= size <= len(self.content) - start:
            raise ValueError(f"{size} bytes are announced at byte {start}, and {len(self.content) - start} are there.")
        self.position = end
        return memoryview(self.content)[start:end] if self.mapped and size >= _MAPPED else self.content[start:end]

    def readline(self) -> bytes:
        end = self.content.find(b"\n", self.position) + 1
        return bytes(self.read((end or len(self.content)) - self.position))


class _PickleMachine:
    """Stack, marks and memo of a pickle.

    The only functions it can call are those in ``_MAKERS``.
    """

    def __init__(self, content: mmap.mmap) -> None:
        self.source, self.allowance = _Source(content), len(content)
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below each mark
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Run all opcodes and return the value."""
        while True:
            name, argument = self.next()
            if name == "STOP":
                break
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _OPERATIONS:
                _OPERATIONS[name](self, argument)
            else:
                raise _Refusal(f"the instruction {name}" + ("" if argument is None else f" of {argument!r}"))
        value = self.stack.pop()
        if self.stack or self.outer:
            raise ValueError("values are left over at its end.")
        if remaining := len(self.source.content) - self.source.position:
            raise ValueError(f"{remaining} bytes follow its end.")
        return _resolve(value, {}, 0)

    def next(self) -> tuple[str, Any]:
        """Read the next opcode; return name and argument."""
        position = self.source.position
        byte = self.source.read(1)
        operation = _OPCODES.get(chr(byte[0]))
        if operation is None:
            raise ValueError(f"byte {position} is {bytes(byte)!r}, no instruction.")
        reader: Any = operation.arg and operation.arg.reader
        self.source.mapped = operation.name in {"BINBYTES", "BINBYTES8", "BYTEARRAY8"}
        if operation.name == "BYTEARRAY8":  # its own reader copies the bytes
            reader = pickletools.bytes8.reader
        argument = None if reader is None else reader(self.source)
        self.source.mapped = False
        return operation.name, argument

    def spend(self, size: int) -> None:
        """Count bytes copied, at most the size of the file."""
        # A memo entry can be used again and again: without this bound a kilobyte could ask for gigabytes.
        self.allowance -= size
        if self.allowance < 0:
            raise ValueError("its values would take more memory than the file has bytes.")

    # Opcodes

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def protocol(self, version: int) -> None:
        if version > _MAX_PROTOCOL:
            raise ValueError(f"protocol {version} is not known.")

    def frame(self, size: int) -> None:
        remaining = len(self.source.content) - self.source.position
        if size > remaining:
            raise ValueError(f"a frame of {size} bytes is announced, and {remaining} are there.")

    def mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        """Pop the last mark and return the values above it."""
        if not self.outer:
            raise ValueError("a mark is missing.")
        values, self.stack = self.stack, self.outer.pop()
        return values

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"it refers to value {index}, which it does not hold.")
        self.stack.append(self.memo[index])

    def tuple_of(self, size: int) -> None:
        if len(self.stack) < size:
            raise ValueError("its stack is empty too early.")
        values = tuple(self.stack[len(self.stack) - size :])
        del self.stack[len(self.stack) - size :]
        self.stack.append(values)

    def dictionary(self, _: None) -> None:
        values = self.to_mark()
        self.stack.append({})
        self.set_items(values)

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError(f"values are appended to {_describe(self.stack[-1])}.")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            raise TypeError(f"{len(values)} keys and values are put into {_describe(self.stack[-1])}.")
        self.stack[-1].update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def add_items(self, _: None) -> None:
        values = self.to_mark()
        if not isinstance(self.stack[-1], set):
            raise TypeError(f"values are added to {_describe(self.stack[-1])}.")
        self.stack[-1].update(map(_key, values))

    def global_name(self, pair: str | None) -> None:
        if pair is None:
            name, module = self.stack.pop(), self.stack.pop()
            if not (isinstance(module, str) and isinstance(name, str)):
                raise TypeError(f"{_describe(module)} and {_describe(name)} are no names.")
            pair = f"{module} {name}"
        self.stack.append(_Global(pair.replace(" ", ".")))

    def reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise TypeError(f"{_describe(function)} is called with {_describe(arguments)}.")
        maker = _MAKERS.get(function.kind)
        if maker is None:
            raise _Refusal(f"a call of `{function.name}`")
        try:
            value = maker(self, *arguments)
        except TypeError as error:
            raise TypeError(f"`{function.name}` is called with arguments it does not take: {error}") from error
        self.stack.append(value)

    def build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            _complete_dtype(target, state)
        elif isinstance(target, _Array):
            if not (isinstance(state, tuple) and len(state) == 5):
                raise TypeError(f"the state of an array is {_describe(state)}.")
            _, shape, dtype, fortran, data = state
            target.value = self.array(data, dtype, shape, "F" if fortran else "C")
        else:
            raise _Refusal(f"a state for {_describe(target)}")

    # Arrays

    def array(self, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        """Make an array over ``data``, after checking type, shape and size."""
        if not isinstance(dtype, _Dtype):
            raise TypeError(f"the type of an array is {_describe(dtype)}.")
        if not _is_shape(shape):
            raise TypeError(f"the shape of an array is {_describe(shape)}.")
        count, kind = math.prod(shape), dtype.numpy()
        if kind.hasobject:
            flat = self.objects(data, count)
        else:
            if isinstance(data, str):  # Python 2
                data = self.encode(data, "latin1")
            if not isinstance(data, bytes | memoryview) or len(data) != count * kind.itemsize:
                raise ValueError(f"an array of {kind} and shape {shape} has {_describe(data)} for its content.")
            flat = np.frombuffer(data, kind) if count else np.empty(0, kind)
        if order not in {"C", "F"}:
            raise ValueError(f"the order of an array is {order!r:.80}.")
        return flat.reshape(shape, order="F" if order == "F" else "C")

    def objects(self, data: Any, count: int) -> np.ndarray:
        """Make a flat array of text, bytes, numbers and missing values."""
        if not (isinstance(data, list) and len(data) == count):
            raise ValueError(f"an array of {count} objects has {_describe(data)} for its content.")
        self.spend(count)
        flat = np.empty(count, dtype=object)
        for index, element in enumerate(data):
            if type(element) not in _SCALARS and not isinstance(element, np.generic):
                raise _Refusal(f"an array of objects with {_describe(element)} in it")
            flat[index] = element
        return flat

    def reconstruct(self, kind: Any, _shape: Any, _code: Any) -> _Array:
        if not (isinstance(kind, _Global) and kind.kind == "ndarray"):
            raise _Refusal(f"an array of the class {_describe(kind)}")
        return _Array()

    def frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        if order == "K" and axes is not None:  # arrays with permuted axes, since NumPy 2.3
            return self.array(data, dtype, shape, "C").transpose(axes)
        return self.array(data, dtype, shape, order)

    def scalar(self, dtype: Any, data: Any) -> Any:
        if isinstance(dtype, _Dtype) and dtype.numpy().hasobject:
            raise _Refusal("a scalar of type object")
        value = self.array(data, dtype, (1,), "C")
        self.spend(value.nbytes)
        return value[0]

    def encode(self, text: Any, encoding: Any) -> bytes:
        """Encode text as Latin-1.

        Protocols 0 to 2 hold bytes in this form.
        """
        if not isinstance(text, str) or encoding != "latin1":
            raise _Refusal(f"a call of `codecs.encode` with {_describe(text)} and {encoding!r:.80}")
        self.spend(len(text))
        return text.encode("latin1")

    def to_bytes(self, data: Any = b"") -> Any:
        if not isinstance(data, bytes | memoryview):
            raise TypeError(f"bytes are made of {_describe(data)}.")
        return data

    def to_complex(self, real: float, imaginary: float) -> complex:
        if type(real) is not float or type(imaginary) is not float:
            raise TypeError(f"a complex number is made of {_describe(real)} and {_describe(imaginary)}.")
        return complex(real, imaginary)

    def to_set(self, values: Any) -> set[Any]:
        if not isinstance(values, list):
            raise TypeError(f"a set is made of {_describe(values)}.")
        self.spend(len(values))
        return set(map(_key, values))


def _is_shape(shape: Any) -> bool:
    """Whether a value is a tuple of sizes.

    The bounds keep their product cheap to compute.
    """
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        return False
    return all(type(size) is int and 0 <= size < 1 << 63 for size in shape)


def _key(value: Any) -> Any:
    """Return a key of a dictionary or an element of a set.

    Types that could define their own hash are refused.
    """
    if type(value) not in _SCALARS and not isinstance(value, np.generic):
        raise TypeError(f"{_describe(value)} is a key.")
    return value


def _complete_dtype(dtype: _Dtype, state: Any) -> None:
    """Set the byte order of a type; refuse structured types."""
    if not (isinstance(state, tuple) and len(state) in {8, 9} and state[1] in {"<", ">", "|", "="}):
        raise TypeError(f"the state of a type is {_describe(state)}.")
    if any(field is not None for field in (*state[2:5], *state[8:])):
        raise _Refusal("a structured type")
    dtype.order = state[1]


def _resolve(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Replace unfinished arrays in nested containers.

    Each container is resolved once, however often it is referred to: nested references double the work at each level.
    """
    if type(value) in _SCALARS or isinstance(value, np.ndarray | np.generic):
        return value
    if id(value) in done:
        if done[id(value)] is done:
            raise ValueError("a container holds itself.")
        return done[id(value)]
    if depth > _MAX_DEPTH:
        raise ValueError(f"containers are nested more than {_MAX_DEPTH} deep.")
    done[id(value)] = done  # marks a container under way, to notice one that holds itself
    result: Any
    if isinstance(value, dict):
        result = {key: _resolve(element, done, depth + 1) for key, element in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)([_resolve(element, done, depth + 1) for element in value])
    elif isinstance(value, set | frozenset):
        result = value
    elif isinstance(value, memoryview):
        result = bytes(value)
    elif isinstance(value, _Array) and value.value is not None:
        result = value.value
    else:
        raise _Refusal(_describe(value))
    done[id(value)] = result
    return result


def _describe(value: Any) -> str:
    if isinstance(value, _Global):
        return f"`{value.name}`"
    if isinstance(value, _Array):
        return "an array without content"
    if isinstance(value, _Dtype):
        return f"the type {value.code}"
    if isinstance(value, str | bytes | memoryview | list | tuple | dict | set | frozenset):
        return f"{type(value).__name__} of length {len(value)}"
    return type(value).__name__


#: Opcodes whose argument is the value.
_PUSHED: Final = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)

_OPERATIONS: Final[dict[str, Callable[[_PickleMachine, Any], Any]]] = {
    "PROTO": _PickleMachine.protocol,
    "FRAME": _PickleMachine.frame,
    "MARK": _PickleMachine.mark,
    "POP": _PickleMachine.pop,
    "POP_MARK": lambda machine, _: machine.to_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "PUT": _PickleMachine.put,
    "BINPUT": _PickleMachine.put,
    "LONG_BINPUT": _PickleMachine.put,
    "MEMOIZE": _PickleMachine.put,
    "GET": _PickleMachine.get,
    "BINGET": _PickleMachine.get,
    "LONG_BINGET": _PickleMachine.get,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.push(machine.to_mark()),
    "DICT": _PickleMachine.dictionary,
    "FROZENSET": lambda machine, _: machine.push(frozenset(map(_key, machine.to_mark()))),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "ADDITEMS": _PickleMachine.add_items,
    "GLOBAL": _PickleMachine.global_name,
    "STACK_GLOBAL": _PickleMachine.global_name,
    "REDUCE": _PickleMachine.reduce,
    "BUILD": _PickleMachine.build,
}

_MAKERS: Final[dict[str, Callable[..., Any]]] = {
    "_reconstruct": _PickleMachine.reconstruct,
    "_frombuffer": _PickleMachine.frombuffer,
    "scalar": _PickleMachine.scalar,
    "dtype": lambda _, code, _align=False, _copy=True: _Dtype(code),
    "encode": _PickleMachine.encode,
    "bytes": _PickleMachine.to_bytes,
    "bytearray": _PickleMachine.to_bytes,
    "complex": _PickleMachine.to_complex,
    "set": _PickleMachine.to_set,
    "frozenset": lambda machine, values: frozenset(machine.to_set(values)),
}
