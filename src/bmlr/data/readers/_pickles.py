"""Pickles of arrays, read without ever running what a pickle can say: a reader of its own, not Python's."""

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

_NEWEST_PROTOCOL = 5


_DEEPEST = 64  # of nested containers


_MAX_DIMENSIONS = 64


_MAPPED = 1 << 16  # bytes; longer ones are not copied out of the file


_DTYPES = re.compile(r"\?|b1|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,8}|O[48]?")


_OPCODES: Final = {operation.code: operation for operation in pickletools.opcodes}


_SCALARS: Final = (str, bytes, int, float, complex, bool, type(None))


#: The globals a pickle may name, and what each stands for here; in the spellings of all versions of Python and numpy.
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
    """Read a pickled dictionary of numpy arrays, numbers, strings, bytes and plain containers of them.

    Whatever else a pickle may ask for is refused by its name. No function or class named in the file is looked up,
    let alone called: the few that arrays are made of are recognised by name and done by this reader, whose work and
    memory are bounded by the size of the file. (Python's unpickler, even one restricted by ``find_class``, can be
    made to change the permitted functions, to reach registered extensions, and to take any amount of memory.)

    Arrays of Python objects are read if all elements are strings, bytes, numbers or None. Text of Python 2 is taken
    as Latin-1.

    Args:
        path: A file of any pickle protocol, 0 to 5, written by any version of numpy.

    Returns:
        The dictionary. Its large arrays are read-only views of the file, read from disk when they are used.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no pickle, is truncated or damaged, or holds anything else; the message names the
            file and what was refused.

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
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty.")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # lives as long as an array that is its view
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # escapes in text that Python knows not
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
    """Something that only running code could give."""


class _Global:
    """A function or class that the pickle names, which stays a name."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        if name not in _GLOBALS:
            raise _Refusal(f"`{name}`")
        self.name, self.kind = name, _GLOBALS[name]


class _Array:
    """An array whose content is still to come."""

    __hash__ = None  # type: ignore[assignment]
    value: np.ndarray | None = None


class _Dtype:
    """Type of an array, whose byte order is still to come."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, code: Any) -> None:
        if not (isinstance(code, str) and _DTYPES.fullmatch(code)):
            raise _Refusal(f"an array of type {code!r}")
        self.code, self.order = code, ""

    def numpy(self) -> np.dtype[Any]:
        """The type; sizes of object pointers are the writer's machine's and do not matter."""
        return np.dtype(object if self.code[0] == "O" else self.order + self.code)


class _Source:
    """The bytes of the file as pickletools reads them; a declared size is compared with what is there first."""

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
    """A pickle machine: a stack, marks and a memo, and no way to call anything but the functions in ``_MAKERS``."""

    def __init__(self, content: mmap.mmap) -> None:
        self.source, self.allowance = _Source(content), len(content)
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Run all opcodes and return the value, with arrays in the place of what stood for them."""
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
        if rest := len(self.source.content) - self.source.position:
            raise ValueError(f"{rest} bytes follow its end.")
        return _resolved(value, {}, 0)

    def next(self) -> tuple[str, Any]:
        """Name and argument of the next opcode."""
        position = self.source.position
        byte = self.source.read(1)
        operation = _OPCODES.get(chr(byte[0]))
        if operation is None:
            raise ValueError(f"byte {position} is {bytes(byte)!r}, no instruction.")
        reader: Any = operation.arg and operation.arg.reader
        self.source.mapped = operation.name in {"BINBYTES", "BINBYTES8", "BYTEARRAY8"}
        if operation.name == "BYTEARRAY8":  # whose own reader makes a copy
            reader = pickletools.bytes8.reader
        argument = None if reader is None else reader(self.source)
        self.source.mapped = False
        return operation.name, argument

    def spend(self, size: int) -> None:
        """Count what is copied: an honest pickle names a value once and cannot come to more than its own size."""
        self.allowance -= size
        if self.allowance < 0:
            raise ValueError("its values would take more memory than the file has bytes.")

    # Opcodes

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def protocol(self, version: int) -> None:
        if version > _NEWEST_PROTOCOL:
            raise ValueError(f"protocol {version} is not known.")

    def frame(self, size: int) -> None:
        left = len(self.source.content) - self.source.position
        if size > left:
            raise ValueError(f"a frame of {size} bytes is announced, and {left} are there.")

    def mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        """The values above the last mark, taken off with it."""
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
            raise TypeError(f"values are appended to {_described(self.stack[-1])}.")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            raise TypeError(f"{len(values)} keys and values are put into {_described(self.stack[-1])}.")
        self.stack[-1].update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def add_items(self, _: None) -> None:
        values = self.to_mark()
        if not isinstance(self.stack[-1], set):
            raise TypeError(f"values are added to {_described(self.stack[-1])}.")
        self.stack[-1].update(map(_key, values))

    def global_name(self, pair: str | None) -> None:
        if pair is None:
            name, module = self.stack.pop(), self.stack.pop()
            if not (isinstance(module, str) and isinstance(name, str)):
                raise TypeError(f"{_described(module)} and {_described(name)} are no names.")
            pair = f"{module} {name}"
        self.stack.append(_Global(pair.replace(" ", ".")))

    def reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise TypeError(f"{_described(function)} is called with {_described(arguments)}.")
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
                raise TypeError(f"the state of an array is {_described(state)}.")
            _, shape, dtype, fortran, data = state
            target.value = self.array(data, dtype, shape, "F" if fortran else "C")
        else:
            raise _Refusal(f"a state for {_described(target)}")

    # Arrays

    def array(self, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        """An array over ``data``, after every size is found right."""
        if not isinstance(dtype, _Dtype):
            raise TypeError(f"the type of an array is {_described(dtype)}.")
        if not _is_shape(shape):
            raise TypeError(f"the shape of an array is {_described(shape)}.")
        count, kind = math.prod(shape), dtype.numpy()
        if kind.hasobject:
            flat = self.objects(data, count)
        else:
            if isinstance(data, str):  # Python 2
                data = self.encode(data, "latin1")
            if not isinstance(data, bytes | memoryview) or len(data) != count * kind.itemsize:
                raise ValueError(f"an array of {kind} and shape {shape} has {_described(data)} for its content.")
            flat = np.frombuffer(data, kind) if count else np.empty(0, kind)
        if order not in {"C", "F"}:
            raise ValueError(f"the order of an array is {order!r:.80}.")
        return flat.reshape(shape, order="F" if order == "F" else "C")

    def objects(self, data: Any, count: int) -> np.ndarray:
        """A flat array of strings, bytes, numbers and None."""
        if not (isinstance(data, list) and len(data) == count):
            raise ValueError(f"an array of {count} objects has {_described(data)} for its content.")
        self.spend(count)
        for item in data:
            if type(item) not in _SCALARS and not isinstance(item, np.generic):
                raise _Refusal(f"an array of objects with {_described(item)} in it")
        flat = np.empty(count, dtype=object)
        for place, item in enumerate(data):
            flat[place] = item
        return flat

    def reconstruct(self, kind: Any, _shape: Any, _code: Any) -> _Array:
        if not (isinstance(kind, _Global) and kind.kind == "ndarray"):
            raise _Refusal(f"an array of the class {_described(kind)}")
        return _Array()

    def frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        if order == "K" and axes is not None:  # any order of the axes, since numpy 2.3
            return self.array(data, dtype, shape, "C").transpose(axes)
        return self.array(data, dtype, shape, order)

    def scalar(self, dtype: Any, data: Any) -> Any:
        if isinstance(dtype, _Dtype) and dtype.numpy().hasobject:
            raise _Refusal("a scalar of type object")
        value = self.array(data, dtype, (1,), "C")
        self.spend(value.nbytes)
        return value[0]

    def encode(self, text: Any, encoding: Any) -> bytes:
        """The way bytes are written in the protocols that have none."""
        if not isinstance(text, str) or encoding != "latin1":
            raise _Refusal(f"a call of `codecs.encode` with {_described(text)} and {encoding!r:.80}")
        self.spend(len(text))
        return text.encode("latin1")

    def to_bytes(self, data: Any = b"") -> Any:
        if not isinstance(data, bytes | memoryview):
            raise TypeError(f"bytes are made of {_described(data)}.")
        return data

    def to_complex(self, real: float, imaginary: float) -> complex:
        if type(real) is not float or type(imaginary) is not float:
            raise TypeError(f"a complex number is made of {_described(real)} and {_described(imaginary)}.")
        return complex(real, imaginary)

    def to_set(self, values: Any) -> set[Any]:
        if not isinstance(values, list):
            raise TypeError(f"a set is made of {_described(values)}.")
        self.spend(len(values))
        return set(map(_key, values))


def _is_shape(shape: Any) -> bool:
    """Whether it is one numpy could have; the bounds keep the product of the sizes cheap."""
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        return False
    return all(type(size) is int and 0 <= size < 1 << 63 for size in shape)


def _key(value: Any) -> Any:
    """A key of a dictionary or element of a set, of a type whose hash is that of its content."""
    if type(value) not in _SCALARS and not isinstance(value, np.generic):
        raise TypeError(f"{_described(value)} is a key.")
    return value


def _complete_dtype(dtype: _Dtype, state: Any) -> None:
    """Byte order of a type; whatever makes it more than a number or text is refused."""
    if not (isinstance(state, tuple) and len(state) in {8, 9} and state[1] in {"<", ">", "|", "="}):
        raise TypeError(f"the state of a type is {_described(state)}.")
    if any(part is not None for part in (*state[2:5], *state[8:])):
        raise _Refusal("a structured type")
    dtype.order = state[1]


def _resolved(value: Any, done: dict[int, Any], depth: int) -> Any:
    """The value with every array in its place; each container is gone through once, however often it is held."""
    if type(value) in _SCALARS or isinstance(value, np.ndarray | np.generic):
        return value
    if id(value) in done:
        if done[id(value)] is done:
            raise ValueError("a container holds itself.")
        return done[id(value)]
    if depth > _DEEPEST:
        raise ValueError(f"containers are nested more than {_DEEPEST} deep.")
    done[id(value)] = done  # until it is known
    result: Any
    if isinstance(value, dict):
        result = {key: _resolved(item, done, depth + 1) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)([_resolved(item, done, depth + 1) for item in value])
    elif isinstance(value, set | frozenset):
        result = value
    elif isinstance(value, memoryview):
        result = bytes(value)
    elif isinstance(value, _Array) and value.value is not None:
        result = value.value
    else:
        raise _Refusal(_described(value))
    done[id(value)] = result
    return result


def _described(value: Any) -> str:
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
    "POP_MARK": lambda reader, _: reader.to_mark(),
    "DUP": lambda reader, _: reader.push(reader.stack[-1]),
    "PUT": _PickleMachine.put,
    "BINPUT": _PickleMachine.put,
    "LONG_BINPUT": _PickleMachine.put,
    "MEMOIZE": _PickleMachine.put,
    "GET": _PickleMachine.get,
    "BINGET": _PickleMachine.get,
    "LONG_BINGET": _PickleMachine.get,
    "NONE": lambda reader, _: reader.push(None),
    "NEWTRUE": lambda reader, _: reader.push(True),
    "NEWFALSE": lambda reader, _: reader.push(False),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_SET": lambda reader, _: reader.push(set()),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.to_mark())),
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "LIST": lambda reader, _: reader.push(reader.to_mark()),
    "DICT": _PickleMachine.dictionary,
    "FROZENSET": lambda reader, _: reader.push(frozenset(map(_key, reader.to_mark()))),
    "APPEND": lambda reader, _: reader.append([reader.stack.pop()]),
    "APPENDS": lambda reader, _: reader.append(reader.to_mark()),
    "SETITEM": lambda reader, _: reader.set_items([reader.stack.pop(), reader.stack.pop()][::-1]),
    "SETITEMS": lambda reader, _: reader.set_items(reader.to_mark()),
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
    "frozenset": lambda reader, values: frozenset(reader.to_set(values)),
}
