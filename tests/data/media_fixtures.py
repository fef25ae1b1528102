"""Small real media files, written with PyAV and soundfile in the layouts, codecs and oddities of the data sets."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48


def tone(
    seconds: float, rate: int, frequency: float = 440.0, channels: int = 1, amplitude: float = 0.3
) -> NDArray[np.float32]:
    """A sine, shape (N, channels), float32; the second channel is an octave above the first."""
    t = np.arange(round(seconds * rate)) / rate
    waves = [np.sin(2 * np.pi * frequency * (c + 1) * t) for c in range(channels)]
    return (amplitude * np.stack(waves, 1)).astype(np.float32)


def colour(index: int, count: int) -> NDArray[np.uint8]:
    """Image of one grey level that tells the position of a frame, (HEIGHT, WIDTH, 3), uint8."""
    return np.full((HEIGHT, WIDTH, 3), 20 + round(200 * index / max(count - 1, 1)), dtype=np.uint8)


def write_video(
    path: str | Path,
    times: Sequence[float],
    end: float,
    *,
    images: Sequence[NDArray[np.uint8]] | None = None,
    audio: NDArray[np.float32] | None = None,
    rate: int = 44100,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    rotation: int = 0,
    with_video: bool = True,
    options: dict[str, str] | None = None,
) -> Path:
    """A video whose frames are seen from ``times`` (seconds) on, the last until ``end``; with sound (N, channels)."""
    path = Path(path)
    images = [colour(i, len(times)) for i in range(len(times))] if images is None else images
    with av.open(str(path), "w", options=options or {}) as container:
        video: Any = None
        sound: Any = None
        if with_video:
            guess = Fraction(len(times) / end).limit_denominator(1001)
            video = container.add_stream(video_codec, rate=guess)
            assert isinstance(video, av.VideoStream)
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            video.time_base = video.codec_context.time_base = Fraction(1, 1000)
            if len({round(1000 * (b - a)) for a, b in itertools.pairwise(times)}) > 2:
                video.options = {"bf": "0"}  # as phones do: with frames out of order, durations are lost
            if rotation:
                video.set_display_rotation(rotation)
        if audio is not None:
            layout = "mono" if audio.shape[1] == 1 else "stereo"
            sound = container.add_stream(audio_codec, rate=rate, layout=layout)
        if video is not None:
            ends = [*times[1:], end]
            lengths = {round(1000 * a): round(1000 * b) - round(1000 * a) for a, b in zip(times, ends, strict=True)}
            for image, start, stop in zip(images, times, ends, strict=True):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = round(start * 1000), Fraction(1, 1000)
                frame.duration = round((stop - start) * 1000)
                _mux_lasting(container, video.encode(frame), lengths)
            _mux_lasting(container, video.encode(None), lengths)
        if sound is not None and audio is not None:
            _mux_sound(container, sound, audio, rate, layout)
    return path


def _mux_lasting(container: Any, packets: Iterable[Any], lengths: Mapping[int, int]) -> None:
    """Write packets with the durations of their frames, which encoders do not hand on."""
    for packet in packets:
        packet.duration = lengths.get(round(float(packet.pts * packet.time_base) * 1000), packet.duration)
        container.mux(packet)


def _mux_sound(container: Any, stream: Any, audio: NDArray[np.float32], rate: int, layout: str) -> None:
    size = 1024
    for start in range(0, len(audio), size):
        block = np.ascontiguousarray(audio[start : start + size].T)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_clip(path: str | Path, seconds: float, *, fps: float = 25.0, **arguments: Any) -> Path:
    """A video at a constant rate."""
    count = max(round(seconds * fps), 1)
    return write_video(path, [i / fps for i in range(count)], count / fps, **arguments)


def write_flv(path: str | Path, seconds: float, *, fps: float = 29.97, sound: bool = True, **arguments: Any) -> Path:
    """A flash video as CREMA-D's: Sorenson's H.263 and MP3."""
    audio = tone(seconds, 44100) if sound else None
    return write_clip(path, seconds, fps=fps, audio=audio, video_codec="flv", audio_codec="libmp3lame", **arguments)


def write_mp4(
    path: str | Path,
    seconds: float,
    *,
    fps: float = 25.0,
    channels: int = 2,
    rate: int = 44100,
    frequency: float = 440.0,
    **arguments: Any,
) -> Path:
    """A video as YouTube's: H.264 and AAC."""
    audio = tone(seconds, rate, frequency, channels) if channels else None
    return write_clip(path, seconds, fps=fps, audio=audio, rate=rate, **arguments)


def write_wav(
    path: str | Path,
    seconds: float,
    *,
    rate: int = 16000,
    channels: int = 1,
    frequency: float = 440.0,
    amplitude: float = 0.3,
) -> Path:
    """A recording of 16 bits."""
    soundfile.write(path, tone(seconds, rate, frequency, channels, amplitude), rate, subtype="PCM_16")
    return Path(path)


def truncate(path: str | Path, share: float = 0.5) -> Path:
    """Cut a file off."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(share * len(content))])
    return Path(path)


def write_crema_d(folder: Path, actors: int = 10, seconds: float = 1.0, fps: float = 5) -> Path:
    """CREMA-D's folders with a clip of every actor and emotion, and published lists that share the actors."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for name in ("AudioWAV", "VideoFlash"):
        (folder / name).mkdir(parents=True)
    for actor in range(1001, 1001 + actors):
        for number, emotion in enumerate(("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")):
            name = f"{actor}_TIE_{emotion}_XX"
            write_wav(folder / "AudioWAV" / f"{name}.wav", seconds, frequency=200 + 150 * number)
            write_flv(folder / "VideoFlash" / f"{name}.flv", seconds, fps=fps, sound=False)
            lines["test" if (actor + number) % 5 == 0 else "train"].append(f"{name},{emotion}")
    for split, members in lines.items():
        (folder / f"{split}.csv").write_text("\n".join(members) + "\n")
    return folder


def write_ave(folder: Path, classes: Sequence[str] = ("Bell", "Horn"), videos: int = 12, seconds: float = 1.5) -> Path:
    """AVE's folder; every fifth video has a second event of the other class."""
    (folder / "AVE").mkdir(parents=True)
    lines = []
    for number in range(videos):
        label, name = classes[number % len(classes)], f"v{number:010d}"
        write_mp4(
            folder / "AVE" / f"{name}.mp4",
            seconds,
            fps=(10, 12.5, 29.97)[number % 3],
            rate=(44100, 48000)[number % 2],
            channels=1 + number % 2,
            frequency=300 * (1 + number % len(classes)),
        )
        lines.append(f"{label}&{name}&good&0&1")
        if number % 5 == 0:
            lines.append(f"{classes[(number + 1) % len(classes)]}&{name}&good&1&2")
    (folder / "Annotations.txt").write_text("\n".join(["Category&VideoID&Quality&StartTime&EndTime", *lines]))
    for number, split in enumerate(("train", "val", "test")):
        members = [line for i, line in enumerate(lines) if (0, 0, 0, 1, 2)[i % 5] == number]
        (folder / f"{split}Set.txt").write_text("\n".join(members) + "\n")
    return folder


def write_kinetics_sounds(
    folder: Path,
    classes: Sequence[str] = ("laughing", "playing piano", "singing"),
    videos: int = 6,
    seconds: float = 1.5,
) -> Path:
    """Kinetics-Sounds in folders of splits and classes; every video is cut into two clips."""
    for c, label in enumerate(classes):
        for number in range(videos):
            for start in (0, 10):
                split = ("train", "train", "train", "train", "val", "test")[number % 6]
                path = folder / split / label / f"{label[:2]}{number:09d}_{start:06d}_{start + 10:06d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_mp4(path, seconds, fps=10, channels=1, frequency=300 * (1 + c))
    return folder
