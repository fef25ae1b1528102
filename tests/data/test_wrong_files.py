"""Files that are not the media they are named as, and machines that cannot read them now: each is told as it is."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_fixtures import write_clip, write_mp4, write_wav
from PIL import Image

from bmlr.cli import main
from bmlr.data.store._store import find_store, open_store, read_rejected

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 72862\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b" " * 2000 + b"</body></html>"


def write_table(folder, head, rows):
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return ["prepare", "manifest", str(folder / "t.csv"), str(folder / "out"), "--workers", "0"]


def healthy(folder, count):
    """A recording, an image and a vector of each of ``count`` samples, and the table's rows."""
    for number in range(count):
        write_wav(folder / f"{number}.wav", 1.0, frequency=300 + 100 * (number % 2))
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
        np.save(folder / f"{number}.npy", np.arange(3.0) + number)
    return [[str(n), "ab"[n % 2], f"{n}.wav", f"{n}.png", f"{n}.npy"] for n in range(count)]


BMLR = Path(sys.executable).with_name("bmlr")
HEAD = ["id", "label", "voice:audio", "photo:image", "x:vector"]


def test_what_is_no_medium_is_named(tmp_path, capsys):
    rows = healthy(tmp_path, 6)
    wrong = {
        "page.wav": (PAGE, "it is a web page, perhaps the message of a failed download: '<!DOCTYPE html>'"),
        "page.png": (PAGE, "it is a web page"),
        "page.npy": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page"),
        "message.wav": (b"404: Not Found: there is no such file", "it is plain text: '404: Not Found"),
        "message.npy": (b'{"message": "Bad credentials"}', "it is plain text"),
        "empty.wav": (b"", "it is empty"),
        "empty.png": (b"", "it is empty"),
        "empty.npy": (b"", "it is empty"),
        "pointer.wav": (POINTER, "it is a Git LFS pointer, a short text in place of the file. Install git-lfs"),
        "pointer.npy": (POINTER, "run `git lfs pull`"),
        "clip.wav.part": ((tmp_path / "0.wav").read_bytes()[:999], "its name says that its download is unfinished"),
    }
    column = {".wav": 2, ".part": 2, ".png": 3, ".npy": 4}
    for number, (name, (content, _)) in enumerate(wrong.items()):
        (tmp_path / name).write_bytes(content)
        row = list(rows[number % 6])
        row[0], row[column[Path(name).suffix]] = name, name
        rows.append(row)
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    rows += [["pipe.wav", "a", "pipe.wav", "0.png", "0.npy"], ["device.wav", "b", "device.wav", "0.png", "0.npy"]]
    command = write_table(tmp_path, HEAD, rows)
    assert main([*command, "--seconds", "1", "--max-rejected", "0.9", "--allow-outside"]) == 0
    reasons = {rejection.id: rejection.reason for rejection in read_rejected(find_store(tmp_path / "out", "manifest"))}
    assert set(reasons) == {*wrong, "pipe.wav", "device.wav"}
    for name, (_, reason) in wrong.items():
        assert reason in reasons[name], name
    for name in ("pipe.wav", "device.wav"):
        assert "should be a file. It is a pipe, socket or device" in reasons[name]


@pytest.mark.parametrize("kind", ["voice", "photo", "x", "table", "list"])
def test_git_lfs_pointers_are_told_before_anything_is_decoded(tmp_path, capsys, monkeypatch, kind):
    rows = healthy(tmp_path, 6)
    command = write_table(tmp_path, HEAD, rows)
    if kind == "table":
        (tmp_path / "t.csv").write_bytes(POINTER)
    elif kind == "list":
        for folder in ("AudioWAV", "VideoFlash"):
            (tmp_path / "c" / folder).mkdir(parents=True)
        write_wav(tmp_path / "c" / "AudioWAV" / "1001_DFA_ANG_XX.wav", 1.0)
        write_clip(tmp_path / "c" / "VideoFlash" / "1001_DFA_ANG_XX.flv", 1.0, fps=5, video_codec="flv")
        (tmp_path / "train.csv").write_bytes(POINTER)
        command = ["prepare", "crema-d", str(tmp_path / "c"), str(tmp_path / "out"), "--workers", "0"]
        command += ["--train_list", str(tmp_path / "train.csv")]
    else:
        suffix = {"voice": "wav", "photo": "png", "x": "npy"}[kind]
        for number in range(3):
            (tmp_path / f"{number}.{suffix}").write_bytes(POINTER)
    monkeypatch.setattr("bmlr.data.store._build.decode_all", lambda *_: pytest.fail("something is decoded"))
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "Git LFS pointer" in said
    assert "git lfs pull" in said
    assert said.count("\n") == 1


def test_published_files_that_are_pointers(tmp_path, capsys):
    for data in ("mosi", "mosei"):
        (tmp_path / "aligned_50.pkl").write_bytes(POINTER)
        assert main(["prepare", data, str(tmp_path / "aligned_50.pkl"), str(tmp_path / "out")]) == 2
        assert "git lfs pull" in capsys.readouterr().err


# Folders of frames


def test_folders_of_frames(tmp_path):
    """Frames in the order of their numbers, at the rate that is said, and new folders in ``predict``."""
    rows = []
    for number in range(12):
        folder = tmp_path / f"clip {number}"
        folder.mkdir()
        for k in range(12):
            name = f"frame{k + 1}.jpg" if number % 2 else f"{k:05d}.png"
            Image.fromarray(np.full((8, 8, 3), 20 * k + number % 2, np.uint8)).save(folder / name)
        (folder / "Thumbs.db").write_bytes(b"x" * 20)
        write_wav(tmp_path / f"{number}.wav", 3.0, frequency=300 + 300 * (number % 2))
        rows.append([str(number), "ab"[number % 2], folder.name, f"{number}.wav"])
    command = write_table(tmp_path, ["id", "label", "face:frames", "voice"], rows)
    assert main([*command, "--size", "8", "--fps", "2", "--frame-rate", "4", "--seconds", "3"]) == 0
    store = open_store(find_store(tmp_path / "out", "manifest"))
    for row in range(12):
        frames = store.values("face", row)
        np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [20, 60, 100, 140, 180, 220], atol=4)
        assert store.samples[row].files["face"]["seconds"] == 3
    assert main([*command, "--size", "8", "--seconds", "2"]) == 0  # one image per second, of which 2 s are wanted
    other = next(path for path in (tmp_path / "out").iterdir() if path != store.folder and path.is_dir())
    np.testing.assert_allclose(open_store(other).values("face", 0).mean(axis=(1, 2, 3)), [0, 20], atol=4)


def test_folders_that_are_no_frames(tmp_path, capsys):
    rows = healthy(tmp_path, 4)
    (tmp_path / "none").mkdir()
    for row in rows:
        row[3] = "none"
    command = write_table(tmp_path, HEAD, rows)
    assert main(command) == 2
    assert "'none' is a folder; only a column of kind 'frames' or 'flow' takes folders" in capsys.readouterr().err
    command = write_table(tmp_path, [*HEAD[:3], "photo:frames", HEAD[4]], rows)
    assert main(command) == 2
    assert "should hold images, the frames of a video. It holds none" in capsys.readouterr().err


def test_crema_d_of_extracted_frames(tmp_path):
    for actor in range(1001, 1009):
        for number, emotion in enumerate(("ANG", "SAD")):
            name = f"{actor}_DFA_{emotion}_XX"
            (tmp_path / "c" / "Image-02-FPS" / name).mkdir(parents=True)
            (tmp_path / "c" / "AudioWAV").mkdir(exist_ok=True)
            write_wav(tmp_path / "c" / "AudioWAV" / f"{name}.wav", 2.0, frequency=300 + 300 * number)
            for k in range(4):
                image = Image.fromarray(np.full((8, 8, 3), 50 * k, np.uint8))
                image.save(tmp_path / "c" / "Image-02-FPS" / name / f"{k:05d}.png")
    command = ["prepare", "crema-d", str(tmp_path / "c"), str(tmp_path / "out"), "--workers", "0", "--size", "8"]
    assert main(command) == 0
    store = open_store(find_store(tmp_path / "out", "crema-d"))
    assert len(store) == 16
    assert {store.samples[row].group for row in range(16)} == {str(actor) for actor in range(1001, 1009)}
    np.testing.assert_array_equal(store.values("video", 0).mean(axis=(1, 2, 3)), [50, 150])  # at 0.5 and 1.5 s


# Lengths


def test_predict_says_what_it_leaves_out(tmp_path, capsys):
    """Of a video longer than those that were prepared, once for sound and frames; a folder of frames is read too."""
    rows = []
    for number in range(12):
        path = write_mp4(tmp_path / f"{number}.mp4", 1.0, fps=4, channels=1, frequency=300 + 300 * (number % 2))
        rows.append([str(number), "ab"[number % 2], path.name, path.name])
    command = write_table(tmp_path, ["id", "label", "film", "sound:audio"], rows)
    assert main([*command, "--size", "16", "--seconds", "1"]) == 0
    train = ["train", "--data", "manifest", "--data.root", str(tmp_path / "out"), "--method", "Joint"]
    train += [
        "--model.width",
        "2",
        "--trainer.epochs",
        "1",
        "--trainer.progress",
        "false",
        "--trainer.accelerator",
        "cpu",
    ]
    assert main([*train, "--run", str(tmp_path / "run")]) == 0
    write_mp4(tmp_path / "long.mp4", 3.0, fps=4, channels=1)
    (tmp_path / "frames").mkdir()
    for k in range(3):
        Image.fromarray(np.full((8, 8, 3), 50 * k, np.uint8)).save(tmp_path / "frames" / f"{k}.png")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "long.mp4")]) == 0
    said = capsys.readouterr().err
    assert said == f"bmlr: {tmp_path / 'long.mp4'} lasts 3.0 s. Its first 1 s are used, as in training.\n"
    files = [f"film={tmp_path / 'frames'}", f"sound={tmp_path / '0.mp4'}"]
    assert main(["predict", str(tmp_path / "run"), *files]) == 0
    assert "frames lasts 3.0 s. Its first 1 s are used" in capsys.readouterr().err


def test_limits_name_the_option_that_moves_them(tmp_path, capsys, monkeypatch):
    rows = healthy(tmp_path, 4)
    Image.new("RGB", (200, 100)).save(tmp_path / "0.png")
    soundfile.write(tmp_path / "1.wav", np.zeros(8000), 8000)
    command = [*write_table(tmp_path, HEAD, rows), "--seconds", "1", "--max-rejected", "0.3"]
    assert main([*command, "--max-pixels", "19999"]) == 2
    rejected = capsys.readouterr().err
    assert "2 of 4 samples were rejected" in rejected
    assert "it has 200 × 100 pixels, at most 19999 are read; option --max-pixels takes more" in rejected
    assert main([*command, "--max-pixels", "20000"]) == 0
    (rejection,) = read_rejected(find_store(tmp_path / "out", "manifest"))
    assert "1.wav is silent" in rejection.reason
    assert "Option --allow-silent takes it" in rejection.reason
    assert main([*command, "--max-pixels", "20000", "--allow-silent", "true"]) == 0
    assert "4 samples, 0 rejected" in capsys.readouterr().out
    write_clip(tmp_path / "film.mp4", 2.0, fps=4)
    command = write_table(tmp_path, ["label", "film", "x"], [["ab"[n % 2], "film.mp4", f"{n}.npy"] for n in range(4)])
    monkeypatch.setattr("bmlr.data.readers._video._MAX_BYTES", 5 * 3 * 16 * 16)
    assert main([*command, "--size", "16", "--fps", "4"]) == 2
    said = capsys.readouterr().err
    assert "at most 5 frames of this size are kept of a video. Less is read with smaller --seconds" in said


# Machines


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.mp4", "a.png", "a.npy"])
def test_a_share_that_goes_away_is_no_damage(tmp_path, capsys, monkeypatch, name):
    """A decoder that finds a file truncated is believed only if the file can be read to its end."""
    rows = healthy(tmp_path, 4)
    kind = {"wav": "audio", "mp3": "audio", "mp4": "video", "png": "image", "npy": "vector"}[name[2:]]
    content = {
        "wav": lambda: (tmp_path / "0.wav").read_bytes()[:9000],
        "mp3": lambda: b"ID3\4\0\0\0\0\0\0" + bytes(range(256)) * 9,
        "mp4": lambda: write_mp4(tmp_path / "0.mp4", 1.0, fps=4).read_bytes()[:2000],
        "png": lambda: (tmp_path / "3.png").read_bytes()[:45],
        "npy": lambda: (tmp_path / "0.npy").read_bytes()[:-4],
    }[name[2:]]()
    (tmp_path / name).write_bytes(content)
    for row in rows:
        row[3] = name
    command = write_table(tmp_path, [*HEAD[:3], f"photo:{kind}", HEAD[4]], rows)
    assert main(command) == 2
    assert "4 of 4 samples were rejected" in capsys.readouterr().err

    def gone(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("bmlr.data.readers._files._read_through", gone)
    assert main([*command, "--seconds", "2"]) == 2
    said = capsys.readouterr().err
    assert "4 of 4 samples could not be read now" in said
    assert "Input/output error" in said


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), OSError(errno.EMFILE, "Too many open files")]
)
def test_a_file_that_cannot_be_opened_is_no_damage(tmp_path, capsys, monkeypatch, error):
    rows = healthy(tmp_path, 4)
    command = write_table(tmp_path, HEAD, rows)
    healthy_open = Path.open

    def refuse(path, mode="r", *arguments, **options):
        if path.suffix in {".wav", ".png", ".npy"} and mode == "rb" and path.parent == tmp_path:
            raise error
        return healthy_open(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert main(command) == 2
    said = capsys.readouterr().err
    assert "4 of 4 samples could not be read now" in said
    assert error.strerror in said
    assert main(command) == 0


def test_librosa_without_a_folder_for_compiled_functions(tmp_path):
    """As in a container without a home, of which the packages belong to another user."""
    command = [*write_table(tmp_path, HEAD, healthy(tmp_path, 4)), "--seconds", "1"]
    environment = {name: value for name, value in os.environ.items() if name not in {"HOME", "NUMBA_CACHE_DIR"}}
    environment |= {"TMPDIR": str(tmp_path), "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    environment["NUMBA_OPT"] = "0"  # all of librosa is compiled once more: slower code is made in a third less time
    done = subprocess.run([BMLR, *command], env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert "4 samples, 0 rejected" in done.stdout
    assert not list(tmp_path.glob("bmlr-numba-*"))
