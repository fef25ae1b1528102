"""The reader of pickled arrays: what it reads, and that nothing else ever comes of a file than a ValueError."""

import collections
import decimal
import math
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tracemalloc
import types
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmlr.data.readers._pickles import read_arrays_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("pickles") / "file.pkl"


def read(path, content):
    """The content of a file of these bytes, or of this value pickled; ``x`` in a dictionary if it is none."""
    path.unlink(missing_ok=True)  # a new file: earlier arrays are views of the old one
    path.write_bytes(content)
    return read_arrays_pickle(path)


def refused(path, content, *words):
    with pytest.raises(ValueError, match=r"file\.pkl") as error:
        read(path, content)
    for word in words:
        assert word in str(error.value)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and equal_arrays(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


def equal_arrays(a, b):
    return a.tolist() == b.tolist() if a.dtype.hasobject else a.tobytes() == b.tobytes()


ARRAYS = {
    "float32": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "float64": np.array([np.nan, -np.inf, 1e300]),
    "float16": np.ones((2, 1, 3), np.float16),
    "big endian": np.arange(5, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(10)[::3],
    "scalar array": np.array(3),
    "empty": np.zeros((0, 50, 5)),
    "bool": np.array([True, False]),
    "uint8": np.arange(256, dtype=np.uint8),
    "complex": np.array([1 + 2j]),
    "text": np.array(["äb", "", "ccc"]),
    "bytes": np.array([b"03bSnISJMiM", b"1"]),
    "objects": np.array([["a", 1.5], [b"b", None]], dtype=object),
    "no objects": np.array([], dtype=object),
    "numpy in objects": np.array([np.float32(1), "x"], dtype=object),
    "large": np.random.default_rng(0).normal(size=(300, 300)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_kind_and_protocol(path, name, protocol):
    value = {"x": ARRAYS[name]}
    assert same(read(path, pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values(path, protocol):
    shared = ["shared"]
    value = {
        "numbers": [0, -1, 255, 65536, 2**40, -(2**80), 2**3000, True, False, None, 1.5, float("-inf"), 2j, 1 - 1j],
        "text": ("", "ä", "日本", "line\nbreak", "\udc80"),
        "bytes": [b"", b"\x00\xff", bytes(range(256)), b"z" * 100_000],
        1: {"deep": {"deeper": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}},
        "sets": [set(), {1, "a"}, frozenset({b"x"})],
        "scalars": [np.float32(0.5), np.int64(-3), np.bool_(True), np.str_("ab"), np.bytes_(b"c"), np.float64("nan")],
        b"key": [shared, shared],
    }
    found = read(path, pickle.dumps(value, protocol))
    scalars, sets = found.pop("scalars"), found.pop("sets")
    assert sets == value.pop("sets")
    assert [type(a) for a in scalars] == [type(a) for a in value["scalars"]]
    assert scalars[:5] == value.pop("scalars")[:5]
    assert same(found, value)
    assert found[b"key"][0] is found[b"key"][1]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(list(ARRAYS.values())),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS), optimised=st.booleans())
def test_plain_values_come_back(path, value, protocol, optimised):
    content = pickle.dumps({"x": value}, protocol)
    assert same(read(path, pickletools.optimize(content) if optimised else content), {"x": value})


def test_old_name_of_numpy_core(path):
    """What numpy 1 wrote, which is what the published files are."""
    content = pickle.dumps({"x": np.arange(3.0), "y": np.float32(2)}, 3).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in content
    found = read(path, content)
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y"] == 2


def test_arrays_of_python_2(path):
    """Byte strings of Python 2, in the protocol it mostly used."""
    data = np.array([1.0, -2.0], "<f4").tobytes()
    content = (
        b"\x80\x02}U\x01xcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U" + bytes([len(data)]) + data + b"tbs."
    )
    assert pickle.loads(content, encoding="latin1")["x"].tolist() == [1, -2]  # noqa: S301  (made just above)
    assert read(path, content)["x"].tolist() == [1, -2]


def test_large_arrays_are_not_copied(path):
    value = {"x": np.zeros(4_000_000, np.float64)}
    path.unlink(missing_ok=True)
    path.write_bytes(pickle.dumps(value, 4))
    tracemalloc.start()
    found = read_arrays_pickle(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert not found["x"].flags.writeable
    assert found["x"].sum() == 0


# Hostile files


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class WithState:
    def __init__(self):
        self.value = 1


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


class SubArray(np.ndarray):
    pass


class SubDict(dict[str, int]):
    pass


def an_array_of(kind):
    return np.zeros(2).view(kind)


HOSTILE = {
    "os.system": (lambda: Calls(os.system, "echo"), f"`{os.system.__module__}.system`"),
    "eval": (lambda: Calls(eval, "1"), ".eval`"),
    "exec": (lambda: Calls(exec, "1"), ".exec`"),
    "import": (lambda: Calls(__import__, "os"), ".__import__`"),
    "getattr": (lambda: Calls(getattr, "a", "upper"), ".getattr`"),
    "numpy.load": (lambda: Calls(np.load, "x.npy"), "`numpy.load`"),
    "subprocess": (lambda: Calls(subprocess.Popen, ["true"]), "`subprocess.Popen`|`commands.Popen`"),
    "object": (lambda: Calls(object), ".object`"),
    "a class": (WithState, "`test_pickles.WithState`|`copy_reg._reconstructor`|`copyreg._reconstructor`"),
    "a function": (lambda: os.path.join, "join`"),
    "a type": (lambda: np.float32, "`numpy.float32`"),
    "ordered": (lambda: collections.OrderedDict(a=1), "`collections.OrderedDict`"),
    "default": (lambda: collections.defaultdict(list), "`collections.defaultdict`"),
    "subclass of dict": (lambda: SubDict(a=1), "SubDict`|_reconstructor`"),
    "subclass of array": (lambda: an_array_of(SubArray), "`test_pickles.SubArray`"),
    "matrix": (lambda: an_array_of(np.matrix), "matrix`"),
    "random": (lambda: np.random.default_rng(0), "`numpy.random"),
    "decimal": (lambda: decimal.Decimal(1), "`decimal.Decimal`"),
    "datetime": (lambda: datetime(2020, 1, 1, tzinfo=UTC), "`datetime.datetime`"),
    "datetime64": (lambda: np.zeros(2, "M8[s]"), "type 'M8'"),
    "structured": (lambda: np.zeros(2, [("a", "i4"), ("b", "O")]), "type 'V"),
    "object in an array": (lambda: np.array([Calls(os.system, "echo")], dtype=object), "system`"),
    "container in an array": (lambda: np.array([{"a": 1}, None], dtype=object), "array of objects with dict"),
    "array in an array": (lambda: np.array([np.zeros(2), np.zeros(3)], dtype=object), "array of objects with"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HOSTILE)
def test_other_objects_are_refused_by_name(path, name, protocol):
    make, words = HOSTILE[name]
    content = pickle.dumps({"x": make()}, protocol)
    with pytest.raises(ValueError, match=r"file\.pkl holds .*nothing was run") as error:
        read(path, content)
    assert any(word in str(error.value) for word in words.split("|")), error.value


def test_slots_are_refused(path):
    refused(path, pickle.dumps({"x": Slots()}, 4), "`test_pickles.Slots`")


NUMPY = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY, DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"
ARRAY = NUMPY + NDARRAY + b"K\x00\x85C\x01b\x87R"
FLOAT64 = DTYPE + b"X\x02\x00\x00\x00f8\x85R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
OBJECT = DTYPE + b"X\x02\x00\x00\x00O8\x85R(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"


def entry(value):
    """A dictionary with ``value``, given as opcodes."""
    return b"\x80\x04}X\x01\x00\x00\x00x" + value + b"s."


MACHINE = {
    "a call of ndarray": (NDARRAY + b"K\x08\x85\x85R", "a call of `numpy.ndarray`"),
    "a new ndarray": (NDARRAY + b"K\x08\x85\x85\x81", "NEWOBJ"),
    "a new object with keywords": (NDARRAY + b")}\x92", "NEWOBJ_EX"),
    "an instance": (b"(ios\nsystem\n", "INST of 'os system'"),
    "an object": (b"(" + NDARRAY + b"o", "OBJ"),
    "a persistent id": (b"Pos.system\n", "PERSID of 'os.system'"),
    "a persistent id from the stack": (b"K\x01Q", "BINPERSID"),
    "extension 1": (b"\x82\x01", "EXT1 of 1"),
    "extension 2": (b"\x83\x01\x01", "EXT2"),
    "extension 4": (b"\x84\x01\x01\x01\x00", "EXT4"),
    "a buffer outside": (b"\x97", "NEXT_BUFFER"),
    "a permitted name as a value": (NDARRAY, "`numpy.ndarray`"),
    "a type as a value": (FLOAT64, "the type f8"),
    "a changed function": (NUMPY + b"}X\x08\x00\x00\x00__call__K\x01sb", "a state for `numpy.core.multiarray._reconst"),
    "a changed class": (NDARRAY + b"N}X\x01\x00\x00\x00aK\x01s\x86b", "a state for `numpy.ndarray`"),
    "a state for a list": (b"]}b", "a state for list"),
    "dotted names": (b"cnumpy\nndarray.__class__\n", "`numpy.ndarray.__class__`"),
    "dotted names from the stack": (b"X\x05\x00\x00\x00numpyX\x09\x00\x00\x00core.load\x93", "`numpy.core.load`"),
    "names in the wrong place": (b"cnumpy.core\nmultiarray._reconstruct.__globals__\n", "__globals__`"),
    "a scalar of type object": (b"cnumpy.core.multiarray\nscalar\n" + OBJECT + b"K\x01\x86R", "scalar of type object"),
    "another encoding": (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R", "'hex'"),
    "a wrong class to reconstruct": (
        NUMPY + b"c_codecs\nencode\nK\x00\x85C\x01b\x87R",
        "of the class `_codecs.encode`",
    ),
    "fields": (
        DTYPE + b"X\x02\x00\x00\x00f8\x85R(K\x03X\x01\x00\x00\x00<NX\x01\x00\x00\x00a\x85}J\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb",
        "a structured type",
    ),
    "metadata": (
        DTYPE + b"X\x02\x00\x00\x00f8\x85R(K\x04X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}tb",
        "a structured type",
    ),
    "a set in a frozen place": (
        OBJECT + b"0" + ARRAY + b"(K\x01K\x01\x85" + OBJECT + b"\x89]]atb",
        "objects with list",
    ),
}


@pytest.mark.parametrize("name", MACHINE)
def test_executing_instructions_are_refused(path, name):
    value, words = MACHINE[name]
    refused(path, entry(value), words, "nothing was run")


DAMAGED = {
    "no array at all": (ARRAY, "an array without content"),
    "too little": (ARRAY + b"(K\x01K\x02\x85" + FLOAT64 + b"\x89C\x08\0\0\0\0\0\0\0\0tb", "bytes of length 8"),
    "a negative shape": (ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT64 + b"\x89C\x00tb", "the shape of an array"),
    "a boolean shape": (ARRAY + b"(K\x01\x88\x85" + FLOAT64 + b"\x89C\x08\0\0\0\0\0\0\0\0tb", "the shape of an array"),
    "an enormous shape": (
        ARRAY + b"(K\x01\x8a\x07\0\0\0\0\0\0\x40\x8a\x07\0\0\0\0\0\0\x40\x86" + FLOAT64 + b"\x89C\x00tb",
        "an array of float64",
    ),
    "a huge integer for a size": (
        ARRAY + b"(K\x01\x8b\x20\x00\x00\x00" + b"\x11" * 32 + b"\x85" + FLOAT64 + b"\x89C\x00tb",
        "the shape of an array",
    ),
    "a state that is none": (ARRAY + b"Nb", "the state of an array is NoneType"),
    "objects that are no list": (ARRAY + b"(K\x01K\x01\x85" + OBJECT + b"\x89C\x01atb", "1 objects has bytes"),
    "two objects for one": (ARRAY + b"(K\x01K\x01\x85" + OBJECT + b"\x89]K\x01aK\x02atb", "list of length 2"),
    "no type": (ARRAY + b"(K\x01K\x01\x85N\x89C\x01atb", "the type of an array is NoneType"),
    "a type of no size": (DTYPE + b"X\x02\x00\x00\x00S0\x85R", "type 'S0'"),
    "a list that holds itself": (b"]\x94h\x00a", "holds itself"),
    "a memo that is empty": (b"h\x07", "value 7"),
    "a marked stack": (b"(K\x01", "is called|put into|empty|list"),
    "no mark": (b"t", "a mark is missing"),
    "a tuple of nothing": (b"0000000\x87", "pop from empty|stack|mark"),
    "a call of a number": (b"K\x01)R", "int is called"),
    "no arguments": (NUMPY + b"]R", "is called with list"),
    "an append to a dictionary": (b"}K\x01a", "appended to dict"),
    "a list as key": (b"}]K\x01s", "list of length 0 is a key"),
    "an array as key": (b"}" + ARRAY + b"K\x01s", "is a key"),
    "a list in a set": (b"\x8f(]\x90", "is a key"),
    "an odd number": (b"}(K\x01u", "1 keys and values"),
    "nested deeply": (b"]" * 90 + b"a" * 89, "nested more than 64 deep"),
    "an unknown order": (
        b"cnumpy.core.numeric\n_frombuffer\n(C\x00" + FLOAT64 + b"K\x00\x85X\x01\0\0\0ZtR",
        "order of an array is 'Z'",
    ),
    "a wrong number of arguments": (b"cnumpy.core.numeric\n_frombuffer\n(C\x00tR", "arguments it does not take"),
    "an unknown protocol": (b"\x80\x09K\x01", "protocol 9"),
    "an unknown instruction": (b"\xff", "no instruction"),
    "a large frame": (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fK\x01", "a frame of 9223372036854775807 bytes"),
    "a large string": (b"X\xff\xff\xff\xffa", "4294967295 bytes are announced"),
    "a larger string": (b"\x8d\xff\xff\xff\xff\xff\xff\x00\x00a", "bytes are announced"),
    "large bytes": (b"\x8e\x00\x00\x00\x00\x00\x01\x00\x00a", "bytes are announced"),
    "a large byte array": (b"\x96\x00\x00\x00\x00\x00\x01\x00\x00a", "bytes are announced"),
    "a large number": (b"\x8b\xff\xff\xff\x7fa", "bytes are announced"),
    "a number of a million digits": (b"L" + b"9" * 1_000_000 + b"L\n", "integer string conversion|digits"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(path, name):
    value, words = DAMAGED[name]
    with pytest.raises(ValueError, match=r"file\.pkl") as error:
        read(path, entry(value))
    assert any(word in str(error.value) for word in words.split("|")), error.value


def test_memo_bombs_take_no_memory(path):
    """A place 2³² in the memo, which Python's unpickler makes room for; copies without end; exponential nesting."""
    far = b"\x80\x04}r\xff\xff\xff\xff."
    copies = (
        b"\x80\x02X\xa0\x86\x01\x00" + b"a" * 100_000 + b"q\x00X\x06\x00\x00\x00latin1q\x01]q\x02("
        + b"c_codecs\nencode\nh\x00h\x01\x86R" * 20_000 + b"e."
    )  # fmt: skip
    views = (
        b"\x80\x04](K\x00" + b"K\x01" * 50_000 + b"e\x940"
        + (ARRAY + b"(K\x01M\x51\xc3\x85" + OBJECT + b"\x89h\x00tb0") * 500 + b"}."
    )  # fmt: skip
    tracemalloc.start()
    assert read(path, far) == {}
    refused(path, copies, "more memory than the file has bytes")
    refused(path, views, "more memory than the file has bytes")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000


def test_exponential_nesting_is_resolved_once(path):
    levels = b"".join(b"](" + (b"h" + bytes([i])) * 30 + b"e\x940" for i in range(40))
    value = read(path, b"\x80\x04]\x940" + levels + b"}X\x01\x00\x00\x00xh\x28s.")["x"]
    for _ in range(40):
        assert len(value) == 30
        value = value[-1]
    assert value == []


def valid():
    return {
        "train": {
            "text": ARRAYS["float32"],
            "audio": ARRAYS["fortran"],
            "id": np.array(["a$_$1", b"b", None], dtype=object),
            "raw_text": ["ä", "b"],
            "length": [np.int64(3), 2**70],
            "score": np.float32(1.5),
        }
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncated_files_are_refused(path, protocol):
    content = pickle.dumps(valid(), protocol)
    for end in range(len(content)):
        refused(path, content[:end])
    refused(path, content + b"\0", "1 bytes follow its end")


@settings(deadline=None, max_examples=300)
@given(
    content=st.binary(max_size=200),
    head=st.sampled_from([b"", b"\x80\x02", b"\x80\x04}", b"}(", b"\x80\x05](" + ARRAY]),
)
def test_random_bytes_give_a_value_error(path, content, head):
    try:
        found = read(path, head + content)
    except ValueError as error:
        assert "file.pkl" in str(error)  # noqa: PT017  (a rare valid pickle raises nothing)
    else:
        assert isinstance(found, dict)


@settings(deadline=None, max_examples=300)
@given(
    protocol=st.sampled_from(PROTOCOLS),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_changed_bytes_give_a_value_error_or_plain_values(path, protocol, changes):
    content = bytearray(pickle.dumps(valid(), protocol))
    for place, byte in changes:
        content[place % len(content)] = byte
    try:
        found = read(path, bytes(content))
    except ValueError as error:
        assert "file.pkl" in str(error)  # noqa: PT017
    else:
        assert_plain(found)


def assert_plain(value):
    if isinstance(value, dict):
        for key, item in value.items():
            assert_plain(key)
            assert_plain(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            assert_plain(item)
    elif isinstance(value, np.ndarray):
        assert type(value) is np.ndarray
        if value.dtype.hasobject:
            assert_plain(value.ravel().tolist())
        else:
            assert value.dtype.kind in "biufcSU"
    else:
        assert isinstance(value, np.generic) or type(value) in {str, bytes, int, float, complex, bool, type(None)}


OPCODES = [operation.code.encode("latin1") for operation in pickletools.opcodes]


@settings(deadline=None, max_examples=300)
@given(
    splits=st.lists(
        st.sampled_from(OPCODES)
        | st.sampled_from([NUMPY, NDARRAY, DTYPE, ARRAY, FLOAT64, OBJECT, b"K\x01", b"X\x01\x00\x00\x00a", b"C\x01a"]),
        max_size=40,
    )
)
def test_random_programs_give_a_value_error_or_plain_values(path, splits):
    try:
        found = read(path, b"\x80\x04}" + b"".join(splits) + b".")
    except ValueError as error:
        assert "file.pkl" in str(error)  # noqa: PT017
    else:
        assert_plain(found)


def test_no_code_runs_even_for_registered_extensions(path, monkeypatch):
    """An extension that the process has used before is reached without a name by Python's unpickler."""
    import copyreg

    called = []
    module = types.ModuleType("bmlr_test_extension")
    module.touch = called.append
    monkeypatch.setitem(sys.modules, "bmlr_test_extension", module)
    copyreg.add_extension("bmlr_test_extension", "touch", 0x7F)
    try:
        hostile = b"\x80\x02\x82\x7fK\x01\x85R."
        pickle.loads(hostile)  # noqa: S301  (made just above)
        assert called == [1]
        refused(path, hostile, "EXT1 of 127")
        assert called == [1]
    finally:
        copyreg.remove_extension("bmlr_test_extension", "touch", 0x7F)
        copyreg.clear_extension_cache()


def test_absent_and_empty_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*absent\.pkl"):
        read_arrays_pickle(tmp_path / "absent.pkl")
    refused(path, b"", "is empty")
    refused(path, pickle.dumps([1, 2]), "should hold a dictionary. Found list")
    refused(path, struct.pack("<4sI", b"PK\x03\x04", 20) + bytes(30), "not a whole pickle")
    refused(path, b"\x93NUMPY\x01\x00" + bytes(100), "not a whole pickle")
