"""Recordings, videos, arrays and lists that would take hours or all memory are refused in a sentence."""

import io
import os
import struct
import subprocess
import sys
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from damage import cut, flip, scramble
from test_hostile import BOMB, refused, written

from bmlr.cli import main
from bmlr.data.readers._arrays import ArrayReader
from bmlr.data.readers._audio import read_audio
from bmlr.data.readers._video import _Sampler, read_frames
from bmlr.data.sets._lists import read_list

av = pytest.importorskip("av")


# Recordings


def flac(samples=4000):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(samples), 8000, format="FLAC")
    return bytearray(file.getvalue())


@pytest.mark.parametrize("claimed", [(1 << 36) - 1, 1 << 30, 120_000_000])
def test_a_recording_that_claims_more_samples_than_memory_holds(tmp_path, claimed):
    content = flac()
    head = int.from_bytes(content[18:26], "big")  # rate, channels, bits, and 36 bits of samples
    content[18:26] = (head >> 36 << 36 | claimed).to_bytes(8, "big")
    with refused(r"x\.flac cannot be read as audio: .*too long|truncated|Internal"):
        read_audio(written(tmp_path / "x.flac", bytes(content)), 8000)


def test_a_small_recording_of_days_of_silence(tmp_path):
    path = tmp_path / "x.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, format="FLAC") as file:
        for _ in range(13):
            file.write(np.zeros(10_000_000, dtype="int16"))
    assert path.stat().st_size < 500_000
    with refused("it is too long: 130000000 samples per channel, 16250 s"):
        read_audio(path, 8000)


def test_a_recording_at_one_sample_per_second(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(100_000), 1)
    with refused("it is too long"):
        read_audio(tmp_path / "x.wav", 22050)


def test_a_recording_of_many_channels_is_read_block_by_block(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.full((1000, 256), 0.5), 8000)
    np.testing.assert_allclose(read_audio(tmp_path / "x.wav", 8000), 0.5, atol=1e-4)


def test_a_long_sound_track(tmp_path, monkeypatch):
    """Of the very length that is too much for a limit made small for the test."""
    from media_fixtures import tone, write_video

    path = write_video(tmp_path / "x.mp4", [], 2.0, audio=tone(2, 44100), with_video=False)
    assert len(read_audio(path, 44100))
    monkeypatch.setattr("bmlr.data.readers._window.MAX_SECONDS", 1)
    with refused(r"x\.mp4 cannot be read: it is too long"):
        read_audio(path, 44100)


# Videos


def video(path, times, width=64, height=48):
    """A video of a few frames at any times, in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for time in times:
            # Not an empty frame: what is in its memory decides whether the encoder takes it.
            frame = av.VideoFrame.from_ndarray(np.full((height * 3 // 2, width), 128, np.uint8), format="yuv420p")
            frame.pts, frame.time_base = round(time * 25), Fraction(1, 25)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


@pytest.mark.parametrize("gap", [15_000, 20_000])
def test_a_video_of_two_frames_that_lasts_for_days(tmp_path, gap):
    path = video(tmp_path / "x.mkv", [0, 1, gap])
    with refused(r"x\.mkv cannot be read: it is too long: at most 14400 s"):
        read_frames(path, 1.0, 224)


def test_a_video_that_gives_more_frames_than_memory_holds(tmp_path):
    path = video(tmp_path / "x.mkv", [0, 1, 10_000])
    with refused(r"x\.mkv cannot be read: it is too long: at most 7133 frames"):
        read_frames(path, 1.0, 224)


def test_a_video_of_huge_frames(tmp_path):
    path = video(tmp_path / "x.avi", [0], 8176, 6128)
    with refused("it has frames of 8176 × 6128 pixels, at most 50000000 are read"):
        read_frames(path, 1.0, 8)


def test_a_video_is_never_held_whole():
    """Of whole frames only the newest is held, and the result of its conversion is kept."""
    sampler, whole = _Sampler(1.0, float, 10), weakref.WeakSet()
    for number in range(100):
        frame = torch.tensor(float(number))
        whole.add(frame)
        sampler.add(frame, number / 25, 1 / 25)
        del frame
        assert len(whole) == 1
    sampler.finish(None)
    assert sampler.frames == [12, 37, 62, 87]


# Arrays


def npy(shape, descr="'<f8'", content=bytes(16)):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


FREE = pytest.param("(-1,)", marks=pytest.mark.skipif(np.__version__ < "2", reason="numpy 1 reads what there is"))


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(600000000,)", f"({2**70},)", FREE, "(((((),),),),)", "(1,"])
def test_an_array_whose_header_claims_more_than_there_is(tmp_path, shape):
    with refused(r"x\.npy cannot be read as a \.npy file of numbers"):
        ArrayReader()(written(tmp_path / "x.npy", npy(shape)))


@pytest.mark.parametrize("descr", ["'|V2000000000'", "[('a', '<f8')]", "'|O'", "[('a','<f8')]*3", "'<f8' if 1 else 0"])
def test_an_array_of_another_type(tmp_path, descr):
    with refused(r"x\.npy"):
        ArrayReader()(written(tmp_path / "x.npy", npy("(1,)", descr)))


def test_packed_arrays_are_no_array(tmp_path):
    file = io.BytesIO()
    np.savez_compressed(file, x=np.zeros(10_000_000))
    with refused(r"x\.npy should hold one array of real numbers"):
        ArrayReader()(written(tmp_path / "x.npy", file.getvalue()))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_arrays(tmp_path, cases):
    seeds = []
    for values in (np.arange(5.0), np.zeros(3, np.float16), np.asfortranarray(np.ones((3, 2), int))):
        file = io.BytesIO()
        np.save(file, values)
        seeds.append(file.getvalue())
    for number in range(cases):
        change = (cut, flip, scramble, scramble)[number % 4]
        path = written(tmp_path / "x.npy", change(seeds[(number // 4) % 3], number))
        try:
            ArrayReader()(path)
        except ValueError:
            continue


# Lists and settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n" + "x," + "y" * 300_000, "cannot be read as a list: field larger"),
        ("label,youtube_id,time_start,time_end\na,b,inf,3", "line 2 should hold times in seconds"),
        ("label,youtube_id,time_start,time_end\na,b,x,3", "line 2 should hold times in seconds"),
    ],
)
def test_lists(tmp_path, text, message):
    path = written(tmp_path / "l.csv", text.encode())
    with refused(rf"l\.csv.*{message}"):
        list(read_list(path, 1))


@pytest.mark.parametrize("option", ["--config {}", "--config={}"])
def test_settings_whose_aliases_stand_for_more_than_memory_holds_on_the_command_line(tmp_path, capsys, option):
    path = written(tmp_path / "c.yaml", BOMB.encode())
    assert main(["train", *option.format(path).split()]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"bmlr: error: {path} is not a YAML file: aliases are not taken")
    assert errors.count("\n") == 1


def test_settings_nested_without_end(tmp_path, capsys):
    for name in ("run", "runs/run"):
        (tmp_path / name).mkdir(parents=True)
        written(tmp_path / name / "config.yaml", b"[" * 3000)
        written(tmp_path / name / "result.json", b"{}")
    for arguments in (["train", "--config", str(tmp_path / "run" / "config.yaml")], ["report", str(tmp_path / "run")]):
        assert main(arguments) == 2, arguments
        errors = capsys.readouterr().err
        assert errors.startswith("bmlr: error: ")
        assert errors.count("\n") == 1


# A full disk, on the command line


def test_a_full_cache_is_said_in_one_sentence(tmp_path, capsys, monkeypatch):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, check=False, capture_output=True).returncode:  # noqa: S603
        pytest.skip("a small file system cannot be mounted here")
    monkeypatch.setenv("BMLR_CACHE", str(tmp_path / "disk"))
    try:
        assert main(["train", "--data", "digits", "--method", "Joint", "--run", str(tmp_path)]) == 2
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)  # noqa: S603, S607
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].startswith(f"bmlr: error: The cache folder {tmp_path / 'disk'} cannot be written")
    assert "Traceback" not in errors


sys.path.append(str(Path(__file__).parents[1] / "data"))  # media_fixtures
