"""The cache holds an entry whole or not at all, whatever happens to its files and however many ask for it."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bmlr._files import with_checksum
from bmlr.data.store import _cache
from bmlr.data.store._cache import cached_arrays

ARRAYS = {"audio": np.arange(12.0, dtype=np.float32).reshape(3, 4), "targets": np.array([2, 0, 1])}


def build():
    return ARRAYS


def refuse():
    raise AssertionError("The entry should have come from the cache.")


def entry(root):
    (folder,) = [path for path in root.iterdir() if not path.name.startswith(".")]
    return folder


def test_second_call_reads_the_files(tmp_path):
    first = cached_arrays("kind", {"a": 1}, build, tmp_path)
    second = cached_arrays("kind", {"a": 1}, refuse, tmp_path)
    for name, array in ARRAYS.items():
        assert isinstance(second[name], np.memmap)
        assert second[name].dtype == array.dtype
        np.testing.assert_array_equal(first[name], array)
        np.testing.assert_array_equal(second[name], array)
    with pytest.raises(ValueError, match="read-only"):
        second["audio"][0] = 1
    assert entry(tmp_path).name.startswith("kind-")
    assert len(list(tmp_path.iterdir())) == 1  # nothing temporary stays


def test_every_split_of_the_key_counts(tmp_path):
    for key in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": None}, {"a": "1"}):
        cached_arrays("kind", key, lambda key=key: {"x": np.array([json.dumps(key)])}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    assert cached_arrays("kind", {"b": None, "a": 1}, refuse, tmp_path)["x"].tolist() == ['{"a": 1, "b": null}']


def test_tuple_counts_as_list(tmp_path):
    cached_arrays("kind", {"sizes": (1, 2)}, build, tmp_path)
    cached_arrays("kind", {"sizes": [1, 2]}, refuse, tmp_path)


def test_manifest_says_what_is_there(tmp_path):
    cached_arrays("kind", {"a": 1}, build, tmp_path)
    manifest = json.loads((entry(tmp_path) / "manifest.json").read_text())
    assert manifest["key"] == {"a": 1}
    assert manifest["arrays"]["audio"]["shape"] == [3, 4]
    assert len(manifest["arrays"]["audio"]["sha256"]) == 64


def test_empty_array_and_no_array(tmp_path):
    cached_arrays("kind", {}, lambda: {"x": np.zeros((0, 4))}, tmp_path)
    assert cached_arrays("kind", {}, refuse, tmp_path)["x"].shape == (0, 4)
    cached_arrays("none", {}, dict, tmp_path)
    assert cached_arrays("none", {}, refuse, tmp_path) == {}


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def scribble(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("damage", [remove, cut, empty, scribble])
@pytest.mark.parametrize("name", ["audio.npy", "targets.npy", "manifest.json"])
def test_damaged_entry_is_made_anew(tmp_path, damage, name):
    cached_arrays("kind", {"a": 1}, build, tmp_path)
    damage(entry(tmp_path) / name)
    np.testing.assert_array_equal(cached_arrays("kind", {"a": 1}, build, tmp_path)["audio"], ARRAYS["audio"])
    cached_arrays("kind", {"a": 1}, refuse, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_changed_values_are_seen_by_their_sum(tmp_path):
    cached_arrays("kind", {"a": 1}, build, tmp_path)
    path = entry(tmp_path) / "audio.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert not np.array_equal(cached_arrays("kind", {"a": 1}, refuse, tmp_path)["audio"], ARRAYS["audio"])
    made = cached_arrays("kind", {"a": 1}, build, tmp_path, verify=True)
    np.testing.assert_array_equal(made["audio"], ARRAYS["audio"])
    cached_arrays("kind", {"a": 1}, refuse, tmp_path, verify=True)


@pytest.mark.parametrize(
    "manifest",
    [
        *("[]", "{}", "null", "[" * 100_000, '{"checksum": ""}', '{"version": 1, "key": {"a": 1}, "arrays": 3}'),
        json.dumps(with_checksum({"version": 1, "key": {"a": 1}, "arrays": 3})),
    ],
)
def test_strange_manifest_is_made_anew(tmp_path, manifest):
    cached_arrays("kind", {"a": 1}, build, tmp_path)
    (entry(tmp_path) / "manifest.json").write_text(manifest)
    np.testing.assert_array_equal(cached_arrays("kind", {"a": 1}, build, tmp_path)["audio"], ARRAYS["audio"])


@pytest.mark.parametrize("change", ["version", "key", "arrays", "checksum"])
def test_a_manifest_that_does_not_fit_its_checksum_is_made_anew(tmp_path, change):
    """As one of a version before there was a checksum."""
    cached_arrays("kind", {"a": 1}, build, tmp_path)
    path = entry(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest == with_checksum(manifest)
    del manifest[change]
    path.write_text(json.dumps(manifest))
    assert _cache.read_entry(path.parent) is None
    np.testing.assert_array_equal(cached_arrays("kind", {"a": 1}, build, tmp_path)["audio"], ARRAYS["audio"])
    assert json.loads(path.read_text())["checksum"]


@pytest.mark.parametrize("text", ["x.npy", '"dtype": "<f4"', '"a": 1'])
def test_a_changed_letter_of_the_manifest_is_seen(tmp_path, text):
    cached_arrays("kind", {"a": 1, "file": "x.npy"}, build, tmp_path)
    path = entry(tmp_path) / "manifest.json"
    whole = path.read_text()
    assert text in whole
    path.write_text(whole.replace(text, text.replace("x", "y").replace("4", "8").replace("1", "3")))
    assert _cache.read_entry(path.parent) is None


def test_pickled_array_in_the_cache_is_never_loaded(tmp_path):
    cached_arrays("kind", {"a": 1}, build, tmp_path)
    folder = entry(tmp_path)
    np.save(folder / "audio.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["arrays"]["audio"]["bytes"] = (folder / "audio.npy").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    np.testing.assert_array_equal(cached_arrays("kind", {"a": 1}, build, tmp_path)["audio"], ARRAYS["audio"])


def test_failed_build_leaves_nothing(tmp_path):
    def fail():
        raise ValueError("a file is damaged")

    with pytest.raises(ValueError, match="a file is damaged"):
        cached_arrays("kind", {"a": 1}, fail, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_root_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot be written .* `BMLR_CACHE`"):
            cached_arrays("kind", {"a": 1}, refuse, root)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("a/b", {}, build), "kind"),
        (("", {}, build), "kind"),
        (("kind", {"a": object()}, build), "key"),
        (("kind", {"a": float("nan")}, build), "key"),
        (("kind", {}, lambda: {"../x": np.zeros(1)}), "array name"),
        (("kind", {}, lambda: {"x": np.array([{}])}), "Array 'x'"),
    ],
)
def test_what_cannot_be_stored(tmp_path, arguments, named):
    with pytest.raises(ValueError, match=named):
        cached_arrays(*arguments, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_root_by_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("BMLR_CACHE", str(tmp_path / "here"))
    cached_arrays("kind", {"a": 1}, build)
    assert entry(tmp_path / "here").is_dir()
    monkeypatch.delenv("BMLR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _cache.cache_root() == tmp_path / "home" / ".cache" / "bmlr"


@pytest.mark.parametrize("damaged", [False, True])
def test_many_at_once(tmp_path, damaged):
    workers = 8
    if damaged:
        cached_arrays("kind", {"a": 1}, build, tmp_path)
        cut(entry(tmp_path) / "audio.npy")
    barrier = threading.Barrier(workers)

    def slow_build():
        barrier.wait(timeout=20)  # all are found without an entry, then all put theirs in place at once
        return ARRAYS

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda _: cached_arrays("kind", {"a": 1}, slow_build, tmp_path), range(workers)))
    for arrays in found:
        np.testing.assert_array_equal(arrays["audio"], ARRAYS["audio"])
    assert len(list(tmp_path.iterdir())) == 1


def test_two_processes_at_once(tmp_path):
    script = (
        "import sys, time, pathlib, numpy as np\n"
        "from bmlr.data.store._cache import cached_arrays\n"
        "root, me, other = pathlib.Path(sys.argv[1]), *sys.argv[2:]\n"
        "def build():\n"
        "    (root.parent / me).touch()\n"
        "    limit = time.monotonic() + 60\n"
        "    while not (root.parent / other).exists() and time.monotonic() < limit: time.sleep(0.001)\n"
        "    return {'x': np.arange(100_000)}\n"
        "print(int(cached_arrays('kind', {'a': 1}, build, root)['x'].sum()))\n"
    )
    root = tmp_path / "cache"
    started = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", script, str(root), *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for names in (("a", "b"), ("b", "a"))
    ]
    for process in started:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert int(out) == 99_999 * 50_000
    assert (tmp_path / "a").exists()  # both did build
    assert (tmp_path / "b").exists()
    assert [path.name.startswith("kind-") for path in root.iterdir()] == [True]
