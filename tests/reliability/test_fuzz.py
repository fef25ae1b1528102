"""Readers of files, given thousands of damaged and hostile ones: they say what is wrong, and nothing else happens.

The readers of pickles and of tables have more tests of the same kind beside them (tests/data/test_pickles.py,
tests/data/test_manifest.py).
"""

import gzip
import io
import json
import pickle
import random
import resource
import struct
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
import yaml
from damage import cut, flip, scramble
from interruptions import CPU

from bmlr._files import with_checksum
from bmlr.cli import main
from bmlr.config import ModelOptions, OptimizerOptions, RunConfig, read_config
from bmlr.data.readers._audio import read_audio
from bmlr.data.readers._idx import read_idx_images, read_idx_labels
from bmlr.data.readers._images import read_gray_image, read_rgb_image
from bmlr.data.readers._pickles import read_arrays_pickle
from bmlr.data.readers._video import read_frames
from bmlr.data.sets._table_files import parse_table
from bmlr.data.store import _cache
from bmlr.methods import BMLR
from bmlr.runs import RunError
from bmlr.runs.storage import (
    _seal,
    read_checkpoint,
    read_json,
    read_weights,
    write_checkpoint,
    write_json,
    write_weights,
)
from toy import Toy

sys.path.append(str(Path(__file__).parents[1] / "data"))  # media_fixtures
ALLOWED = (ValueError, FileNotFoundError, RunError)
CASES = [200, pytest.param(10_000, marks=pytest.mark.slow)]


def damaged(seeds, number):
    """A damaged file: the number says which of the seeds, and how."""
    change = (cut, flip, scramble, scramble)[number % 4]
    return change(seeds[(number // 4) % len(seeds)], number)


def fuzz(read, path, seeds, cases, prepare=None):
    """Read damaged files; how many were taken for whole."""
    taken = 0
    for number in range(cases):
        content = damaged(seeds, number)
        if content in seeds:  # the edits have undone each other
            continue
        path.write_bytes(content)
        if prepare is not None:
            prepare(path)
        try:
            read(path)
        except ALLOWED:
            continue
        except BaseException as error:
            raise AssertionError(f"Case {number} of {read.__name__} caused {error!r}.") from error
        taken += 1
    return taken


# Files of data sets


def idx(magic, shape, values):
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + bytes(values)


@pytest.mark.parametrize("cases", CASES)
def test_idx_files(tmp_path, cases):
    images = idx(0x803, (3, 28, 28), range(256)) + bytes(3 * 784 - 256)
    labels = idx(0x801, (5,), [3, 1, 4, 1, 5])
    packed = [gzip.compress(content) for content in (images, labels)]
    assert read_idx_images(written(tmp_path / "i", images)).shape == (3, 28, 28)
    assert read_idx_labels(written(tmp_path / "l", labels)).tolist() == [3, 1, 4, 1, 5]
    assert fuzz(read_idx_images, tmp_path / "x", [images, packed[0]], cases) < cases / 2
    assert fuzz(read_idx_labels, tmp_path / "y", [labels, packed[1]], cases) < cases / 2


def written(path, content):
    path.write_bytes(content)
    return path


def test_a_packed_file_that_unpacks_to_gigabytes_is_read_to_its_declared_end_only(tmp_path):
    bomb = gzip.compress(idx(0x801, (5,), [0] * 5) + bytes(200_000_000), compresslevel=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="x"):
        read_idx_labels(written(tmp_path / "x", bomb))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def recordings():
    samples = np.sin(np.arange(64) / 3)
    for subtype, channels in (("PCM_16", 1), ("PCM_24", 2), ("FLOAT", 1), ("PCM_U8", 1), ("ULAW", 1)):
        for kind in ("WAV", "WAVEX", "RF64"):
            file = io.BytesIO()
            soundfile.write(file, np.tile(samples[:, None], channels), 8000, subtype, format=kind)
            yield file.getvalue()


@pytest.mark.parametrize("cases", CASES)
def test_wav_files(tmp_path, cases):
    def read(path):
        with np.errstate(all="ignore"):
            waveform = read_audio(path, 8000)
        assert waveform.dtype == np.float32
        assert len(waveform)
        assert np.isfinite(waveform).all()

    seeds = list(recordings())
    for number, content in enumerate(seeds):
        read(written(tmp_path / f"{number}.wav", content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz(read, tmp_path / "x.wav", seeds, cases)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def images():
    values = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            PIL.Image.fromarray(values).convert(mode).save(file, kind)
            yield file.getvalue()


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("read", [lambda path: read_rgb_image(path, 8), lambda path: read_gray_image(path, 8, 8)])
def test_images(tmp_path, cases, read):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz(read, tmp_path / "x.png", list(images()), cases)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # 50 million pixels and copies


@pytest.mark.parametrize("cases", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_videos(tmp_path, cases):
    from media_fixtures import write_flv, write_mp4

    seeds = [write_mp4(tmp_path / "a.mp4", 0.4, fps=10).read_bytes(), write_flv(tmp_path / "a.flv", 0.4).read_bytes()]
    fuzz(lambda path: read_frames(path, 5, 8), tmp_path / "x.mp4", seeds, cases)
    fuzz(lambda path: read_audio(path, 44100), tmp_path / "x.mp4", seeds, cases)


@pytest.mark.parametrize("cases", CASES)
def test_pickles(tmp_path, cases):
    """What comes out of a damaged one is plain values and arrays, or an error."""
    content = {"train": {"audio": np.zeros((2, 3)), "id": ["a", "b"], "n": 1.5}, 7: (None, b"x")}
    seeds = [pickle.dumps(content, protocol=protocol) for protocol in range(6)]
    assert read_arrays_pickle(written(tmp_path / "whole", seeds[-1])).keys() == content.keys()
    fuzz(lambda path: plain(read_arrays_pickle(path)), tmp_path / "x.pkl", seeds, cases)


def plain(value):
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            plain(item)
    else:
        assert value is None or isinstance(value, (str, bytes, bytearray, int, float, complex, np.ndarray, np.generic))


@pytest.mark.parametrize("cases", CASES)
def test_tables(tmp_path, cases):
    seeds = [
        b'id,label,split,audio,text\n1,x,train,a.wav,"a ""b"" c"\n2,y,test,b.wav,\n',
        "id;label;audio\n1;\u00e9;a.wav\n".encode("utf-16"),
        "id\tlabel\ta\n1\tx\tq\n".encode("utf-8-sig"),
    ]
    fuzz(lambda path: parse_table(path.read_bytes(), path), tmp_path / "x.csv", seeds, cases)


@pytest.mark.parametrize("cases", CASES)
def test_manifests_of_the_cache(tmp_path, cases):
    """Whatever the manifest or an array is like, what comes out of the cache is right: taken whole or made anew."""
    key = {"n": [1, 2], "of": "squares"}
    arrays = {"x": np.arange(4) ** 2, "y": np.zeros((0, 2), dtype=np.float32), "z": np.array(["a", "bc"])}
    _cache.cached_arrays("squares", key, lambda: arrays, tmp_path)
    folder = _cache.entry_folder("squares", key, tmp_path)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = ["manifest.json", "manifest.json", *sorted(set(whole) - {"manifest.json"})]
    for number in range(cases):
        name = names[number % len(names)]
        if folder.is_file():
            folder.unlink()
        folder.mkdir(exist_ok=True)
        for other, content in whole.items():
            (folder / other).write_bytes(content)
        (folder / name).write_bytes(damaged([whole[name]], number))
        _cache.read_entry(folder, _cache.plain_key(key))  # values may be others without their sums, but nothing fails
        entry = _cache.read_entry(folder, _cache.plain_key(key), verify=True)
        if entry is None and number % 20:
            continue  # making it anew is the slow split
        found = _cache.cached_arrays("squares", key, lambda: arrays, tmp_path, verify=True)
        assert found.keys() == arrays.keys()
        for each, array in arrays.items():
            assert found[each].dtype == array.dtype
            assert np.array_equal(found[each], array)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "x.npy", "", "a\0b", "x" * 5000])
def test_a_manifest_leads_nowhere_else(tmp_path, name):
    key = {"n": 1}
    _cache.cached_arrays("k", key, lambda: {"x": np.arange(3)}, tmp_path / "cache")
    folder = _cache.entry_folder("k", key, tmp_path / "cache")
    np.save(tmp_path / "cache" / "x.npy", np.arange(9))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["arrays"] = {name: manifest["arrays"]["x"]}
    (folder / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    assert _cache.read_entry(folder) is None


# Files of runs


def seed_checkpoint(folder):
    content = {
        "bmlr_run": {"digest": "0" * 64, "best": None},
        "state_dict": {"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "text": "ä",
        "numbers": [1, 2.5, None, True],
    }
    write_checkpoint(folder / "seed.ckpt", content)
    return (folder / "seed.ckpt").read_bytes()


@pytest.mark.parametrize("cases", CASES)
def test_checkpoints(tmp_path, cases):
    """A file that is taken for one of another program, and so has no checksum, is refused as that of another run."""

    def read(path):
        if "bmlr_run" not in read_checkpoint(path):
            raise RunError("of another run")

    assert fuzz(read, tmp_path / "x.ckpt", [seed_checkpoint(tmp_path)], cases) == 0


@pytest.mark.parametrize("cases", CASES)
def test_checkpoints_with_a_right_checksum_of_wrong_content(tmp_path, cases):
    """As a hostile hand would make them: past the checksum, whatever torch says is said as one of ours."""
    marker = tmp_path / "ran"
    unsealed = seed_checkpoint(tmp_path)[:-71]
    unsealed = unsealed[:-2] + b"\0\0"

    def seal(path):
        try:
            _seal(path)
        except (RuntimeError, OSError):  # no end of an archive is left
            return

    fuzz(read_checkpoint, tmp_path / "x.ckpt", [unsealed], cases, seal)
    assert not marker.exists()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["torch", "pickle", "sealed"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, how):
    path, marker = tmp_path / "x.ckpt", tmp_path / "ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"bmlr_run": Hostile(marker)}))
    else:
        torch.save({"bmlr_run": Hostile(marker)}, path)
        if how == "sealed":
            _seal(path)
    marker.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("cases", CASES)
def test_weights(tmp_path, cases):
    write_weights(tmp_path / "w", {"a": torch.arange(6.0), "b": torch.ones(2, 2, dtype=torch.int16)})
    assert fuzz(read_weights, tmp_path / "x", [(tmp_path / "w").read_bytes()], cases) == 0


@pytest.mark.parametrize("cases", CASES)
def test_results(tmp_path, cases):
    content = {
        "test": {"accuracy": 0.8125, "ratio": None},
        "method": "BMLR",
        "reshaped": [0.25, 0.5],
        "digest": "ab" * 32,
    }
    write_json(tmp_path / "r", content)
    seed = (tmp_path / "r").read_bytes()
    whole = json.loads(seed)

    def read(path):
        assert read_json(path) == whole  # white space may have changed, numbers not

    fuzz(read, tmp_path / "x", [seed], cases)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "NaN", "null", '"checksum"', "{}", ""]
)
def test_results_of_other_shapes(tmp_path, content):
    (tmp_path / "x").write_text(content)
    with pytest.raises(ValueError, match="x"):
        read_json(tmp_path / "x")


def configuration():
    options = (ModelOptions(width=2), OptimizerOptions(lr=0.1), CPU)
    return RunConfig(Toy(24), BMLR(), *options, seed=3)


@pytest.mark.parametrize("cases", CASES)
def test_configurations(tmp_path, cases):
    """Damage never goes unnoticed: what is read is what was written, or an error."""
    config = configuration()

    def read(path):
        assert read_config(path).as_dict() == config.as_dict()

    fuzz(read, tmp_path / "x.yaml", [config.as_yaml().encode()], cases)


VALUES: list[object] = [
    None, True, -1, 0, 10**400, -1.5, float("nan"), float("inf"), "", "x", "\u0000", [], [[]], {}, {"a": {}}, [1, "x"],
    {"class_path": "os.system"}, {"class_path": "os.system", "init_args": {"command": "true"}}, {1: 2}, {None: []},
    "2001-01-01", b"\xff", "!!python/name:os.system", "${HOME}", "../../x", "é" * 3000,
]  # fmt: skip


def edited(content, rng):
    """A configuration with some of its values replaced, removed or added."""
    entries = [(content, key) for key in content]
    for parent in list(content.values()):
        if isinstance(parent, dict):
            entries += [(parent, key) for key in parent]
            entries += [
                (parent[key], inner) for key in parent if isinstance(parent[key], dict) for inner in parent[key]
            ]
    for _ in range(rng.randint(1, 3)):
        parent, key = rng.choice(entries)
        kind = rng.randrange(8)
        if kind == 0:
            parent.pop(key, None)
        elif kind == 1:
            parent[rng.choice(["x", 7, None, "__class__", "init_args", "class_path"])] = rng.choice(VALUES)
        else:
            parent[key] = rng.choice(VALUES)
    return content


@pytest.mark.parametrize("cases", CASES)
def test_configurations_of_wrong_values(tmp_path, cases):
    path = tmp_path / "x.yaml"
    seed = configuration().as_dict()
    for number in range(cases):
        content = edited(json.loads(json.dumps(seed)), random.Random(number))  # noqa: S311
        path.write_text(yaml.dump(content, allow_unicode=True))
        try:
            read_config(path)
        except ALLOWED:
            continue
        except BaseException as error:
            raise AssertionError(f"Case {number} caused {error!r}: {path.read_text()}") from error


# Configurations that name what they must not


HOSTILE = [
    "os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.__import__", "pickle.loads",
    "shutil.rmtree", "bmlr.data._digits.os.system", "bmlr.methods.BMLR.__init__", "bmlr.methods.BMLR.__class__",
    "bmlr.methods.__class__", "bmlr.methods.__loader__.load_module", "toy.Toy.__reduce__", "toy.np.load", "torch.load",
    "torch.nn.Linear", "bmlr.methods.Method", "bmlr.data.MultimodalData", "__main__.__builtins__", ".BMLR", "BMLR.",
    "bmlr..BMLR", "bmlr.methods._types.functools.reduce", "antigravity.geohash",
]  # fmt: skip


@pytest.mark.parametrize("split", ["data", "method"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_configuration_names_registered_and_imported_classes_only(tmp_path, monkeypatch, name, split):
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)  # the command line imports what it is told to
    content = configuration().as_dict()
    content[split] = {"class_path": name, "init_args": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        ValueError, match=r"There is no (method|data set)|has no such class|of your own|abstract class|no module"
    ):
        read_config(tmp_path / "config.yaml")
    assert "antigravity" not in sys.modules


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize(
    ("name", "split"),
    [
        # What stands for a class is looked up; elsewhere none is wanted, whatever its name.
        pytest.param(name, split, marks=() if split in {"data", "method"} or name in HOSTILE[:2] else pytest.mark.slow)
        for name in HOSTILE
        if name[0] not in "._" and name[-1] != "."
        for split in ("data", "method", "model", "optimizer", "trainer", "seed", "run")
    ],
)
def test_the_command_line_takes_subclasses_only(tmp_path, capsys, monkeypatch, name, split):
    """Also nothing of what is named is called or made."""
    monkeypatch.chdir(tmp_path)
    content = configuration().as_dict()
    content[split] = {"class_path": name, "init_args": {"command": f"touch {tmp_path}/ran", "args": ["touch", "ran"]}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "--config", "c.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bmlr: error: ")
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}


YAML_THAT_DOES_MORE = [
    "!!python/object/apply:os.system ['touch ran']",
    "data: !!python/name:os.system ''",
    "data: !!python/module:os ''",
    "method: !!python/object/new:os.system ['touch ran']",
    "&a [*a]",
    "a: &a {<<: *a}",
    "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)), "data: *a39"]),
    "[" * 5000,
    "? [a, b]\n: c",
    "a: 2001-99-99",
    "a: 1_0__0:99:99",
]


@pytest.mark.parametrize("text", YAML_THAT_DOES_MORE)
def test_yaml_that_would_do_more_than_say_something(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_config(tmp_path / "config.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}


@pytest.mark.parametrize("text", YAML_THAT_DOES_MORE[:4])
def test_nor_does_the_command_line_do_it(tmp_path, capsys, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    assert main(["train", "--config", "config.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}
