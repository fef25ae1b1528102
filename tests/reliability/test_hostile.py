"""Small files that stand for much more: each ends in one sentence, in bounded memory and time."""

import contextlib
import gzip
import io
import json
import pickle
import resource
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import soundfile
import torch

from bmlr.benchmark import compare_store
from bmlr.cli import main
from bmlr.config import read_config
from bmlr.data.readers._audio import read_audio
from bmlr.data.readers._idx import read_idx_images
from bmlr.data.readers._images import read_gray_image, read_rgb_image
from bmlr.data.sets._table_files import read_table
from bmlr.runs.storage import read_checkpoint, read_json, read_weights


@contextlib.contextmanager
def refused(match, *, megabytes=300, seconds=20, error=ValueError):
    """What is inside ends in one sentence, without more memory (beyond the most ever used) and processor time."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(error, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < megabytes
    assert time.process_time() - started < seconds


def written(path, content):
    path.write_bytes(content)
    return path


# Images


def image(width, height, *extra):
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*one) for one in extra) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (12_000, 12_000)])
def test_an_image_of_huge_dimensions(tmp_path, size):
    path = written(tmp_path / "x.png", image(*size))
    for read in (lambda: read_rgb_image(path, 8), lambda: read_gray_image(path, 8, 8)):
        with refused("x.png cannot be read as an image"):
            read()


def test_an_image_with_a_text_that_unpacks_to_gigabytes(tmp_path):
    text = (b"zTXt", b"k\0\0" + zlib.compress(bytes(60_000_000), 1))
    path = written(tmp_path / "x.png", image(8, 8, text))
    with refused("x.png cannot be read as an image"):
        read_rgb_image(path, 8)


# Recordings


def header(data, name=b"RIFF", size=0xFFFFFFFF):
    return (
        name + struct.pack("<I", size) + b"WAVE" + (b"ds64" + struct.pack("<IQQQI", 28, 1 << 50, 1 << 50, 1 << 49, 0)
        if name == b"RF64" else b"") + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
        + b"data" + struct.pack("<I", data)
    )  # fmt: skip


@pytest.mark.parametrize("content", [header(0xF0000000), header(1000), header(0xFFFFFFFF, b"RF64")])
def test_a_recording_whose_header_claims_gigabytes(tmp_path, content):
    path = written(tmp_path / "x.wav", content + bytes(100))
    with refused("x.wav cannot be read as audio: it is truncated: its header says"):
        read_audio(path, 8000)


def test_a_recording_of_zero_channels_or_an_odd_rate(tmp_path):
    for rate, channels in ((0, 1), (8000, 0), (2**31, 1)):
        content = bytearray(header(100) + bytes(100))
        at = content.index(b"fmt ") + 10
        content[at : at + 6] = struct.pack("<HI", channels, rate)
        with contextlib.suppress(ValueError):
            assert np.isfinite(read_audio(written(tmp_path / "x.wav", bytes(content)), 8000)).all()


# Archives


def test_an_idx_file_that_declares_and_unpacks_to_gigabytes(tmp_path):
    for count in (100_001, 2**32 - 1):
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        with refused("x.gz should hold 1 to 100000 items"):
            read_idx_images(written(tmp_path / "x.gz", gzip.compress(head + bytes(60_000_000), 1)))


# Tables and settings


@pytest.mark.parametrize("field", [b"y" * 10_000_000 + b"\n", b'"' + b"y,\n" * 3_000_000])
def test_a_table_with_one_endless_field(tmp_path, field):
    with refused(r"t\.csv cannot be read as CSV: row 2: field larger than field limit", megabytes=1000):
        read_table(written(tmp_path / "t.csv", b"id,label,a\n1,x," + field))


BOMB = "\n".join([
    "a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)),
    "data: *a59", "method: *a59", "model: *a59", "optimizer: *a59", "trainer: *a59", "seed: 0",
])  # fmt: skip


def test_settings_whose_aliases_stand_for_more_than_memory_holds(tmp_path, capsys):
    path = written(tmp_path / "config.yaml", BOMB.encode())
    with refused("aliases are not taken"):
        read_config(path)
    for arguments in (["report", str(tmp_path)], ["evaluate", str(tmp_path)]):
        started = time.process_time()
        assert main(arguments) == 2, arguments
        assert capsys.readouterr().err.startswith("bmlr: error: ")
        assert time.process_time() - started < 30


def test_a_store_of_runs_with_such_settings(tmp_path):
    (tmp_path / "run").mkdir()
    written(tmp_path / "run" / "config.yaml", BOMB.encode())
    written(tmp_path / "run" / "result.json", b"{}")
    with refused("run", error=(ValueError, FileNotFoundError)):
        compare_store([tmp_path])


# Weights, checkpoints, results


@pytest.mark.parametrize("length", [2**63, 2**32, 99_000_000, 0])
def test_weights_with_a_header_of_any_length(tmp_path, length):
    with refused("x cannot be read as weights"):
        read_weights(written(tmp_path / "x", struct.pack("<Q", length) + b"{"))


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode(),
        json.dumps({"w": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**64 - 1]}}).encode(),
        b'{"a":' + b"[" * 1_000_000,
    ],
)
def test_weights_whose_header_claims_more_than_there_is(tmp_path, content):
    with refused("x cannot be read as weights"):
        read_weights(written(tmp_path / "x", struct.pack("<Q", len(content)) + content + bytes(8)))


def repacked(path, *, change=lambda name, content: content, kind=zipfile.ZIP_STORED):
    """The archive of a checkpoint with entries changed."""
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
    return path


@pytest.mark.parametrize("name", ["data/0", "data.pkl", "version"])
def test_a_checkpoint_that_unpacks_to_more_than_its_size(tmp_path, name):
    def longer(entry, content):
        return content + bytes(30_000_000) if entry.endswith(name) else content

    path = repacked(tmp_path / "x.ckpt", change=longer, kind=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with refused("x.ckpt cannot be read as a checkpoint", megabytes=25):
        read_checkpoint(path)


def test_a_checkpoint_whose_entries_overlap(tmp_path):
    """A thousand names for one entry of a megabyte."""
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/0", bytes(1_000_000))
        (first,) = archive.infolist()
        archive.filelist += [first] * 1000
    with refused("x.ckpt cannot be read as a checkpoint"):
        read_checkpoint(path)


PROGRAMS = {
    "a long bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (5 * 10**9).to_bytes(5, "little") + b"\x85R.",
    "and by its old name": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "marks": b"\x80\x02" + b"(" * 100_000 + b"t.",
    "nested lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a memo beyond all": b"\x80\x02}r\xff\xff\xff\xff.",
    "a string that is not there": b"\x80\x02X\xff\xff\xff\x7fx.",
    "nothing": b"",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_checkpoint_with_a_hostile_program(tmp_path, program):
    def replaced(name, content):
        return PROGRAMS[program] if name.endswith("/data.pkl") else content

    path = repacked(tmp_path / "x.ckpt", change=replaced)
    with contextlib.suppress(AssertionError) if program == "a memo beyond all" else refused(r"x\.ckpt"):
        assert read_checkpoint(path) == {}


def test_a_checkpoint_that_is_no_archive(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    written(tmp_path / "pickle.ckpt", pickle.dumps({"a": 1}))
    for name in ("old.ckpt", "pickle.ckpt"):
        with refused(f"{name} cannot be read as a checkpoint"):
            read_checkpoint(tmp_path / name)


def test_a_result_of_a_number_without_end(tmp_path):
    with refused("x is not a JSON file"):
        read_json(written(tmp_path / "x", b'{"a": ' + b"9" * 10_000_000 + b"}"))


def test_a_recording_of_a_format_that_only_looks_like_one(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(4000), 8000, format="CAF", subtype="PCM_16")
    content = bytearray(file.getvalue())
    at = content.index(b"data")
    content[at + 4 : at + 12] = struct.pack(">Q", 1 << 50)
    with refused(r"x\.caf cannot be read as audio"):
        read_audio(written(tmp_path / "x.caf", bytes(content)), 8000)
