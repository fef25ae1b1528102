"""Healthy media as other programs leave them: ``bmlr prepare`` reads each like its plain counterpart."""

import csv
import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from media_fixtures import colour, tone, write_clip, write_video
from PIL import Image

from bmlr.cli import main
from bmlr.data.store._store import find_store, open_store

RATE = 16000
LOW, HIGH = 440.0, 1760.0


def prepare(folder, head, rows, *options):
    """Prepare a table by the command; return the stored values by modality and sample, and the samples."""
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    command = ["prepare", "manifest", str(folder / "t.csv"), str(folder / "out"), "--workers", "0"]
    assert main([*command, "--progress", "false", *options]) == 0
    store = open_store(find_store(folder / "out", "manifest"))
    samples = {sample.id: sample for sample in store.samples}
    values = {
        name: {
            sample.id: store.values(name, row) for row, sample in enumerate(store.samples) if store.present(name)[row]
        }
        for name in store.modalities
    }
    return values, samples


def vectors(folder, count):
    """Files of a second modality."""
    for number in range(count):
        np.save(folder / f"{number}.npy", np.arange(3.0) + number)
    return [f"{number}.npy" for number in range(count)]


def loudest(spectrogram):
    """Frequency of the loudest bin in the mean over time, in Hz."""
    return int(spectrogram.astype(np.float32).mean(-1).argmax()) * 22050 / 512


# Recordings


def encoded(form, subtype, **arguments):
    file = io.BytesIO()
    soundfile.write(file, tone(1.0, RATE, LOW)[:, 0], RATE, format=form, subtype=subtype, **arguments)
    return file.getvalue()


def muxed(form, codec, rate=RATE):
    """The tone, encoded by FFmpeg."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        sizes = stream.codec_context.format.name
        block = tone(1.0, rate, LOW).T
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        fifo = av.AudioFifo()
        for piece in av.AudioResampler(format=sizes, layout="mono", rate=rate).resample(frame):
            fifo.write(piece)
        while piece := fifo.read(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def patched(content, **places):
    """Content with 32-bit sizes replaced: of the whole file, or after a chunk's name."""
    content = bytearray(content)
    for name, size in places.items():
        at = 4 if name == "whole" else content.index(name.encode()) + 4
        content[at : at + 4] = struct.pack(">I" if content[:4] == b"FORM" else "<I", size)
    return bytes(content)


def recordings():
    wav, rf64 = encoded("WAV", "PCM_16"), encoded("RF64", "PCM_16")
    at, sizes = wav.index(b"fmt "), rf64.index(b"ds64") + 8
    flac, au, caf = (bytearray(encoded(form, "PCM_16")) for form in ("FLAC", "AU", "CAF"))
    lengths = int.from_bytes(flac[18:26], "big")
    flac[18:26] = (lengths >> 36 << 36).to_bytes(8, "big")
    au[8:12] = b"\xff" * 4
    place = caf.index(b"data") + 4
    caf[place : place + 8] = b"\xff" * 8
    exact = {
        "plain.wav": wav,
        "sizes of -1.wav": patched(wav, whole=0xFFFFFFFF, data=0xFFFFFFFF),
        "sizes of 0.wav": patched(wav, whole=0, data=0),
        "of a pipe of sox.wav": patched(wav, whole=0x7FFFF024, data=0x7FFFF000),
        "of a pipe of arecord.wav": patched(wav, whole=0x80000024, data=0x80000000),
        "long.wav": rf64,
        "broadcast.wav": b"BW64" + rf64[4:],
        "long of a pipe.wav": rf64[:sizes] + b"\xff" * 24 + rf64[sizes + 24 :],
        "long of zeros.wav": rf64[:sizes] + bytes(24) + rf64[sizes + 24 :],
        "junk first.wav": wav[:at] + b"JUNK" + struct.pack("<I", 28) + bytes(28) + wav[at:],
        "odd chunk.wav": wav[:at] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + wav[at:],
        "padded.wav": wav + bytes(4096),
        "extensible.wav": encoded("WAVEX", "PCM_16"),
        "big end.wav": encoded("WAV", "PCM_16", endian="BIG"),
        "aiff.wav": encoded("AIFF", "PCM_16"),
        "w64.wav": encoded("W64", "PCM_16"),
        "streamed.au": bytes(au),
        "streamed.caf": bytes(caf),
        "streamed.aiff": patched(encoded("AIFF", "PCM_16"), whole=0, SSND=0, COMM=18),
        "wav.mp3": wav,
        "wav.mp4": wav,
    }
    close = {
        "streamed.flac": bytes(flac),
        "flac.wav": encoded("FLAC", "PCM_16"),
        "24 bits.wav": encoded("WAV", "PCM_24"),
        "adpcm.wav": encoded("WAV", "MS_ADPCM"),
        "ima.wav": encoded("WAV", "IMA_ADPCM"),
        "law.wav": encoded("WAV", "ULAW"),
        "gsm.wav": encoded("WAV", "GSM610") if "GSM610" in soundfile.available_subtypes("WAV") else wav,
        "vorbis.wav": encoded("OGG", "VORBIS"),
        "opus.wav": encoded("OGG", "OPUS"),
        "mp3.wav": muxed("mp3", "libmp3lame"),
        "mp3 inside.wav": muxed("wav", "libmp3lame"),
        "m4a.wav": muxed("mov", "aac"),
        "adts.wav": muxed("adts", "aac"),
        "webm.wav": muxed("webm", "libopus", 48000),
        "mp3.flac": muxed("mp3", "libmp3lame"),
    }
    return exact, close


def test_recordings_of_other_programs(tmp_path):
    """Streamed headers, odd chunks and other containers under the wrong name."""
    exact, close = recordings()
    files = {**exact, **close}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = [
        [name, "ab"[number % 2], name, vector]
        for number, (name, vector) in enumerate(zip(files, vectors(tmp_path, len(files)), strict=True))
    ]
    options = ("--seconds", "1", "--dtype", "float32", "--max_rejected", "0")
    values, samples = prepare(tmp_path, ["id", "label", "voice:audio", "x"], rows, *options)
    plain = values["voice"]["plain.wav"]
    for name in exact:
        np.testing.assert_array_equal(values["voice"][name], plain, err_msg=name)
        assert samples[name].files["voice"]["seconds"] == 1, name
    for name in close:
        assert loudest(values["voice"][name]) == pytest.approx(LOW, abs=45), name
        assert samples[name].files["voice"]["seconds"] == pytest.approx(1, abs=0.15), name


# Videos


def scene(seconds, colours, fps=4):
    """Frames of one colour for each second."""
    return [np.full((48, 64, 3), colours[int(k / fps)], np.uint8) for k in range(round(seconds * fps))]


RED, BLUE = (200, 0, 0), (0, 0, 200)


def two_scenes(path, seconds=4, **arguments):
    """Half the time red with a low tone, then blue with a high one."""
    half = seconds // 2
    sound = np.concatenate([tone(half, 44100, LOW), tone(half, 44100, HIGH)])
    return write_clip(
        path, seconds, fps=4, images=scene(seconds, [RED] * half + [BLUE] * half), audio=sound, **arguments
    )


class Pipe:
    """A file in which nothing can go back to fill in a size."""

    def __init__(self, path):
        self.file = path.open("wb")

    def write(self, content):
        return self.file.write(content)


def write_streams(
    path,
    *,
    cover=False,
    tones=((LOW, True),),
    seconds=2.0,
    late_sound=0.0,
    late_video=0.0,
    pipe="",
    codecs=("libx264", "aac"),
    **arguments,
):
    """A video with any number of audio streams (frequency, default) and a cover picture before the others.

    With ``pipe``, the name of a format, it is written as to a pipe.
    """
    target = Pipe(path) if pipe else str(path)
    with av.open(target, "w", **({"format": pipe} if pipe else {}), **arguments) as container:
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        if seconds:
            video = container.add_stream(codecs[0], rate=4)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            video.options = {"bf": "0"}  # a fragmented file has no place to say that reordered frames come late
        sounds = [container.add_stream(codecs[1], rate=44100, layout="mono") for _ in tones]
        for stream, (_, default) in zip(sounds, tones, strict=True):
            stream.disposition = Disposition.default if default else Disposition(0)
        if cover:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 255, np.uint8)).reformat(format="yuvj420p")
            container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        if seconds:
            count = round(seconds * 4)
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(colour(number, count)).reformat(format="yuv420p")
                frame.pts, frame.time_base = number + round(late_video * 4), Fraction(1, 4)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        for stream, (frequency, _) in zip(sounds, tones, strict=True):
            wave = tone(seconds or 2.0, 44100, frequency).T
            for start in range(0, wave.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(wave[:, start : start + 1024]), format="fltp", layout="mono"
                )
                frame.sample_rate, frame.time_base = 44100, Fraction(1, 44100)
                frame.pts = start + round(late_sound * 44100)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    if pipe:
        target.file.close()
    return path


def test_videos_of_other_programs(tmp_path):
    """Covers, several sound tracks, containers without a duration; each is the same two seconds."""
    made = {
        "plain.mp4": {},
        "cover.mp4": {"cover": True},
        "cover.mkv": {"cover": True},
        "live.mkv": {"container_options": {"live": "1"}},
        "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}},
        "no duration.flv": {"container_options": {"flvflags": "no_duration_filesize"}},
        "broadcast.ts": {},
        "second sound.mkv": {"tones": ((HIGH, False), (LOW, True))},
        "quicktime.mov": {},
        "matroska.mp4": {"format": "matroska"},
        "of a pipe.avi": {"pipe": "avi", "codecs": ("mpeg4", "ac3")},
        "of a pipe.mkv": {"pipe": "matroska"},
        "of a pipe.flv": {"pipe": "flv"},
        "of a pipe.wmv": {"pipe": "asf", "codecs": ("mpeg4", "ac3")},
    }
    vector_files = vectors(tmp_path, len(made))
    rows = []
    for number, (name, arguments) in enumerate(made.items()):
        write_streams(tmp_path / name, **arguments)
        rows.append([name, "ab"[number % 2], name, name, vector_files[number]])
    head = ["id", "label", "film", "sound:audio", "x"]
    options = ("--seconds", "2", "--fps", "4", "--size", "16", "--max_rejected", "0")
    values, samples = prepare(tmp_path, head, rows, *options)
    for name in made:
        frames = values["film"][name]
        assert len(frames) == 8, name
        assert np.abs(frames.astype(int) - values["film"]["plain.mp4"]).max() < 12, name
        assert loudest(values["sound"][name]) == pytest.approx(LOW, abs=45), name
        assert samples[name].files["film"]["seconds"] == pytest.approx(2, abs=0.1), name


def test_animations_are_videos(tmp_path):
    """A GIF and an animated PNG in a column of videos."""
    scenes = [Image.fromarray(np.full((48, 64, 3), shade, np.uint8)) for shade in (40, 200)]
    for name in ("a.gif", "a.png"):
        scenes[0].save(tmp_path / name, save_all=True, append_images=scenes[1:], duration=1000)
    names = vectors(tmp_path, 4)
    rows = [[f"{k}", "ab"[k % 2], ("a.gif", "a.png")[k // 2], names[k]] for k in range(4)]
    values, _ = prepare(tmp_path, ["id", "label", "film:video", "x"], rows, "--size", "8", "--max_rejected", "0")
    for name, frames in values["film"].items():
        assert [round(float(frame.mean()), -1) for frame in frames.astype(float)] == [40, 200], name


def test_a_cover_is_no_video(tmp_path, capsys):
    """Songs with a cover, given as videos."""
    for number in range(4):
        write_streams(tmp_path / f"{number}.mp4", cover=True, seconds=0)
    rows = [["ab"[n % 2], f"{n}.mp4", f"{n}.mp4"] for n in range(4)]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["label", "film", "sound:audio"], *rows])
    assert main(["prepare", "manifest", str(tmp_path / "t.csv"), str(tmp_path), "--workers", "0"]) == 2
    assert "it has no video stream, only a cover picture" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_and_picture_have_one_clock(tmp_path, suffix):
    """A stream that begins later than the other is silent, or shows its first frame, until then."""
    write_streams(tmp_path / f"sound.{suffix}", late_sound=1.0)
    write_streams(tmp_path / f"picture.{suffix}", late_video=1.0)
    rows = [[name, "ab"[n], f"{name}.{suffix}", f"{name}.{suffix}"] for n, name in enumerate(("sound", "picture"))]
    options = ("--seconds", "3", "--fps", "4", "--size", "16")
    values, _ = prepare(tmp_path, ["id", "label", "film", "sound:audio"], rows, *options)
    loud = {name: values["sound"][name].astype(np.float32).max(axis=(0, 1, 2)) for name in ("sound", "picture")}
    frames_per_second = loud["sound"].size / 3
    first = {name: int((levels > -5).argmax()) / frames_per_second for name, levels in loud.items()}
    assert first["sound"] == pytest.approx(1.0, abs=0.05)
    assert first["picture"] == pytest.approx(0.0, abs=0.05)
    grey = {name: values["film"][name].mean(axis=(1, 2, 3)) for name in ("sound", "picture")}
    assert len(grey["sound"]) == 8
    assert len(grey["picture"]) == 12
    np.testing.assert_allclose(grey["picture"][:4], grey["picture"][4], atol=3)
    np.testing.assert_allclose(grey["picture"][4:], grey["sound"], atol=4)


def test_videos_are_turned_and_mirrored_as_players_show_them(tmp_path):
    """All eight orientations of the display matrix give the same picture."""
    shown = np.zeros((48, 64, 3), np.uint8)
    shown[:24, :32] = 220  # a bright upper left corner, and a less bright lower right one
    shown[24:, 32:] = 110
    rows, vector_files = [], vectors(tmp_path, 8)
    for number in range(8):
        turns, mirrored = number % 4, number >= 4
        stored = np.rot90(shown[:, ::-1] if mirrored else shown, -turns)
        path = tmp_path / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=4)
            stream.width, stream.height, stream.pix_fmt = stored.shape[1], stored.shape[0], "yuv420p"
            stream.set_display_rotation(90 * turns, hflip=mirrored)
            for k in range(4):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored)).reformat(format="yuv420p")
                frame.pts, frame.time_base = k, Fraction(1, 4)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        rows.append([str(number), "ab"[number % 2], path.name, vector_files[number]])
    values, _ = prepare(tmp_path, ["id", "label", "film", "x"], rows, "--size", "16", "--max_rejected", "0")
    expected = np.asarray(Image.fromarray(shown).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    for number in range(8):
        assert np.abs(values["film"][str(number)][0] - expected).mean() < 6, number


# Images


def test_images_of_other_programs(tmp_path):
    """Every orientation in every format, broken metadata, deep, printed, mapped and moving pixels."""
    shown = np.zeros((40, 64, 3), np.uint8)
    shown[:20, :32], shown[20:, 32:] = 220, 110
    plain = Image.fromarray(shown)
    files = {}
    transposed = {  # what a camera stores so that the orientation gives the image back
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for suffix, options in {"jpg": {"quality": 95}, "png": {}, "webp": {"lossless": True}, "tif": {}}.items():
        for orientation, transposition in transposed.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored = plain if transposition is None else plain.transpose(transposition)
            files[name := f"{orientation}.{suffix}"] = stored.size
            stored.save(tmp_path / name, exif=exif, **options)
    content = (tmp_path / "1.jpg").read_bytes()
    at = content.index(b"Exif\0\0") + 6
    (tmp_path / "broken.jpg").write_bytes(content[: at + 8] + b"\xff" * 12 + content[at + 20 :])
    content = (tmp_path / "1.png").read_bytes()
    at = content.index(b"IDAT") - 4
    note = b"\x00\x00\x00\x04tEXta\x00bc" + bytes(4)  # a checksum of zero
    (tmp_path / "broken.png").write_bytes(content[:at] + note + content[at:] + note)
    plain.save(tmp_path / "plain.ppm")
    deep = np.asarray(plain.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    plain.convert("CMYK").save(tmp_path / "printed.jpg", quality=95)
    palette = plain.quantize(8)
    palette.save(tmp_path / "palette.png", transparency=bytes([255] * 8))
    palette.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("P", plain.size)])
    plain.convert("RGBA").save(tmp_path / "alpha.png")
    plain.save(tmp_path / "png.jpg", format="PNG")
    files |= dict.fromkeys(path.name for path in tmp_path.iterdir())
    vector_files = vectors(tmp_path, len(files))
    rows = [[name, "ab"[n % 2], name, vector_files[n]] for n, name in enumerate(files)]
    values, _ = prepare(tmp_path, ["id", "label", "photo:image", "x"], rows, "--size", "16", "--max_rejected", "0")
    expected = np.asarray(plain.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    for name in files:
        assert np.abs(values["photo"][name][0].astype(int) - expected).mean() < 4, name


# Times


def test_sound_and_frames_are_of_the_same_seconds(tmp_path, capsys):
    """Of a video longer than what is read; columns of times choose another part, and predict says it too."""
    two_scenes(tmp_path / "long.mp4")
    two_scenes(tmp_path / "long.mkv")
    rows = [
        ["first", "a", "long.mp4", "long.mp4", "", ""],
        ["first of mkv", "b", "long.mkv", "long.mkv", "0", "2"],
        ["last", "a", "long.mp4", "long.mp4", "2", "4"],
        ["last of mkv", "b", "long.mkv", "long.mkv", "2.0", ""],
        ["middle", "a", "long.mp4", "long.mp4", "1.5", "2.5"],
    ]
    head = ["id", "label", "film", "sound:audio", "start", "end"]
    options = ("--seconds", "2", "--fps", "4", "--size", "16", "--max_rejected", "0")
    values, samples = prepare(tmp_path, head, rows, *options)
    said = capsys.readouterr().out
    assert "1 of 5 clips are longer than 2 s, up to 4.0 s. Their first 2 s are used, of film and sound" in said
    assert "1 of 5 sounds are shorter than 2 s, down to 1.0 s. They are repeated." in said
    for name, tone_, colour_ in (
        ("first", LOW, RED),
        ("first of mkv", LOW, RED),
        ("last", HIGH, BLUE),
        ("last of mkv", HIGH, BLUE),
    ):
        assert loudest(values["sound"][name]) == pytest.approx(tone_, abs=45), name
        assert len(values["film"][name]) == 8, name
        assert np.abs(values["film"][name].mean(axis=(1, 2)) - colour_).max() < 12, name
    middle = values["film"]["middle"].mean(axis=(1, 2))
    assert [("blue", "red")[int(red > blue)] for red, _, blue in middle] == ["red", "red", "blue", "blue"]
    assert samples["middle"].files["film"]["seconds"] == samples["middle"].files["sound"]["seconds"] == 1
    assert samples["last"].extra["start"] == "2"


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [
        ("5", "", "5.00 s, its interval begins at 5 s|its interval begins at 5 s"),
        ("2", "1", "its end (1 s) should be after its start (2 s)"),
        ("soon", "", "column 'start' should hold seconds, such as 12.5. It holds 'soon'"),
        ("-1", "", "column 'start' should hold seconds"),
        ("", "nan", "column 'end' should hold seconds"),
    ],
)
def test_times_that_cannot_be(tmp_path, capsys, start, end, problem):
    two_scenes(tmp_path / "long.mp4")
    rows = [["a", "long.mp4", "long.mp4", start, end], ["b", "long.mp4", "long.mp4", start, end]]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["label", "film", "sound:audio", "start", "end"], *rows])
    assert main(["prepare", "manifest", str(tmp_path / "t.csv"), str(tmp_path), "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert any(words in said for words in problem.split("|")), said


def test_short_sounds(tmp_path, capsys):
    """The length that is asked for is enough; a shorter one is taken by an option that the message names."""
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", tone(0.3, 8000), 8000)
    rows = [[str(n), "ab"[n % 2], f"{n}.wav", vector] for n, vector in enumerate(vectors(tmp_path, 4))]
    head = ["id", "label", "click", "x"]
    values, _ = prepare(tmp_path, head, rows, "--seconds", "0.3", "--dtype", "float32")
    assert values["click"]["0"].shape[-1] == 1 + 6615 // 353
    capsys.readouterr()
    command = ["prepare", "manifest", str(tmp_path / "t.csv"), str(tmp_path / "more"), "--workers", "0"]
    assert main([*command, "--seconds", "0.6"]) == 2
    assert "too short: 0.30 s, at least 0.5 s are needed. Option --min-seconds takes" in capsys.readouterr().err
    assert main([*command, "--seconds", "0.6", "--min-seconds", "0.2"]) == 0
    assert "4 of 4 sounds are shorter than 0.6 s, down to 0.3 s. They are repeated." in capsys.readouterr().out


def test_intervals_far_into_a_file(tmp_path):
    """Every second has its own colour and tone; files are searched for the interval, which must not miss it."""
    seconds = 9
    sound = np.concatenate([tone(1, 44100, 400 + 150 * k) for k in range(seconds)])
    images = scene(seconds, [(20 * k, 20 * k, 20 * k) for k in range(seconds)])
    rows = []
    for name in ("a.mp4", "a.mkv", "a.flv", "a.ts"):
        codecs = {"video_codec": "flv", "audio_codec": "libmp3lame"} if name == "a.flv" else {}
        write_clip(tmp_path / name, seconds, fps=4, images=images, audio=sound, **codecs)
        rows += [[f"{k} {name}", "ab"[k % 2], name, name, str(k), str(k + 1)] for k in (0, 5, 8)]
    soundfile.write(tmp_path / "a.wav", sound, 44100)
    write_video(tmp_path / "a.m4a", [], seconds, audio=sound, with_video=False)
    write_video(tmp_path / "a.mp3", [], seconds, audio=sound, with_video=False, audio_codec="libmp3lame")
    rows += [
        [f"{k} {name}", "ab"[k % 2], "", name, str(k), str(k + 1)]
        for name in ("a.wav", "a.m4a", "a.mp3")
        for k in (5, 8)
    ]
    head = ["id", "label", "film:video", "sound:audio", "start", "end"]
    values, _ = prepare(tmp_path, head, rows, "--seconds", "1", "--fps", "4", "--size", "16", "--max_rejected", "0")
    for name, *_, start, _ in rows:
        k = int(start)
        assert loudest(values["sound"][name]) == pytest.approx(400 + 150 * k, abs=45), name
        if name in values["film"]:
            assert len(values["film"][name]) == 4, name
            np.testing.assert_allclose(values["film"][name].mean(axis=(1, 2, 3)), 20 * k, atol=5, err_msg=name)
