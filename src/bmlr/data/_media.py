"""Films, recordings, pictures and arrays: reading them with every check, and the readers that prepare them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

import numpy as np

from bmlr._checks import check_choice, check_integer, check_non_negative, check_positive
from bmlr.data._audio import MOST_SECONDS, Spectrogram, check_length, read_wave
from bmlr.data._base import Kind, Modality
from bmlr.data._prepare import Reading

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from PIL import Image

RECORDINGS = (".wav", ".flac", ".ogg", ".aiff", ".aif", ".w64", ".caf")  # what libsndfile reads
FILMS = (".mp4", ".flv", ".avi", ".mkv", ".webm", ".mov", ".m4v")
SILENCE = 1e-4  # −80 dB of full scale: three steps of 16 bits

# Demuxers of plain media files. FFmpeg's others include playlists, which name further files and addresses.
_FORMATS = "mov,mp4,flv,live_flv,avi,matroska,webm,mp3,aac,ogg,wav,mpeg,mpegts,asf,3gp"
_DECLARING = {"mov", "mp4", "flv", "matroska", "webm", "avi"}  # formats whose duration is written, not estimated
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"mfra", b"sidx", b"styp", b"uuid", b"meta"}
_TOLERANCE = 0.25  # seconds by which a film may end before its header says; a hundredth of a long one
_PICTURES = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # pillow's others include PostScript, which is code
_MOST_PIXELS = 50_000_000
_MOST_BYTES = 1 << 30  # of the frames that are taken from one film


def check_installed() -> None:
    """Raise a ValueError with the command to run unless the packages that decode are installed."""
    missing = [name for name in ("av", "librosa", "soundfile", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'{missing[0]} is not installed. Run: pip install "bmlr[media]"')


def read_sound(path: Path, sample_rate: int) -> np.ndarray:
    """The sound of a recording or film as one channel.

    Args:
        path: A wav, flac or ogg file, read by libsndfile, or any file FFmpeg finds an audio stream in; of several the
            first is taken.
        sample_rate: Samples per second of the result; another rate is resampled, as ``librosa.load`` does.

    Returns:
        Samples, mean over the channels, shape (N,), float32; full scale is [−1, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, is truncated, is longer than four hours or 2²⁸ samples per channel,
            has no audio stream, no samples, or samples that are NaN or infinite; the message names it.
    """
    path = Path(path)
    if path.suffix.lower() in RECORDINGS:
        return read_wave(path, sample_rate)
    with _opened(path) as container:
        if not container.streams.audio:
            raise ValueError("it has no audio stream")
        waveform, rate = _decode_sound(container, sample_rate)
    if not len(waveform):
        raise ValueError(f"{path} holds no samples.")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{path} holds samples that are NaN or infinite.")
    if rate != sample_rate:
        import librosa

        waveform = librosa.resample(waveform, orig_sr=rate, target_sr=sample_rate)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def read_frames(path: Path, fps: float, size: int) -> tuple[np.ndarray, float]:
    """Frames of a film, chosen by time.

    The film, from the time of its first frame to the end of its last, is cut into intervals of 1 / ``fps`` seconds;
    of each the frame that is seen at its middle is taken. An interval whose middle the film does not reach is left
    out, unless it is the only one: then the frame at the middle of the film is taken. Variable and odd frame rates
    make no difference. Rotated films are set upright, then frames are resized to a square, bilinearly with
    antialiasing; their aspect is not kept.

    Args:
        path: A file FFmpeg finds a video stream in; of several the first is taken.
        fps: Frames per second of the result.
        size: Height and width of the result in pixels.

    Returns:
        Frames, shape (T, size, size, 3), uint8, and the film's length in seconds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, is truncated, has no video stream or frame, is longer than four hours,
            has frames of more than 50 million pixels or gives more than a gigabyte of frames; the message names it.
    """
    path = Path(path)
    with _opened(path) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        times, pictures, seconds = _choose_frames(container, fps, size)
        if not times:
            raise ValueError("it has no frame that can be decoded")
    return np.stack(pictures), seconds


def read_colours(path: Path, size: int) -> np.ndarray:
    """A picture in colour, resized to a square, shape (size, size, 3), uint8; transparent pixels count as black.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as a picture of at most 50 million pixels; the message names it.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pillow reads some damaged files with no more than a warning
            with Image.open(path, formats=_PICTURES) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"it has {image.width} × {image.height} pixels, at most {_MOST_PIXELS} are read")
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are of type {image.mode}, which has no plain conversion to 8 bits")
                turned = ImageOps.exif_transpose(image).convert("RGBA")
                opaque = Image.new("RGBA", turned.size, "black")
                opaque.alpha_composite(turned)
                return _square(opaque.convert("RGB"), size)
    except Exception as error:  # Pillow's are of a dozen kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


@dataclasses.dataclass(frozen=True)
class AudioReader:
    """Reads the sound of a file as a log spectrogram; its samples are limited to [−1, 1] first.

    Args:
        spectrogram: Form of the spectrogram.
        dtype: Type it is stored in. Its values lie between −16.2 and about 8, where float16 is exact to 0.008.
        min_seconds: Shorter sounds are refused.
        silence: Sounds whose samples all lie within ± this value are refused.

    Raises:
        ValueError: If a parameter is out of its range.

    Example:
        >>> reader = AudioReader(Spectrogram(22050, 512, 353, None, 3.0, "repeat"))
        >>> reader.modality.shape, reader.parameters["dtype"]
        ((1, 257, 188), 'float16')
    """

    spectrogram: Spectrogram
    dtype: Literal["float16", "float32"] = "float16"
    min_seconds: float = 0.5
    silence: float = SILENCE

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("float16", "float32"))
        check_non_negative("min_seconds", self.min_seconds)
        check_non_negative("silence", self.silence)

    @property
    def modality(self) -> Modality:
        """A spectrogram (1, bins, frames)."""
        return Modality("spectrogram", self.spectrogram.shape)

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return _parameters(self)

    def __call__(self, path: Path) -> Reading:
        """Read a recording or film."""
        waveform = read_sound(path, self.spectrogram.sample_rate)
        seconds = len(waveform) / self.spectrogram.sample_rate
        _check_length(path, seconds, self.min_seconds)
        loudest = float(np.abs(waveform).max())
        if loudest <= self.silence:
            raise ValueError(f"{path} is silent: no sample is beyond ± {self.silence:g} of full scale.")
        values = self.spectrogram(np.clip(waveform, -1, 1)).astype(self.dtype)
        return Reading(values, seconds)


@dataclasses.dataclass(frozen=True)
class VideoReader:
    """Reads the frames of a film at a steady rate, see :func:`read_frames`.

    Args:
        size: Height and width in pixels.
        fps: Frames per second.
        min_seconds: Shorter films are refused.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    size: int = 224
    fps: float = 1.0
    min_seconds: float = 0.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)
        check_positive("fps", self.fps)
        check_non_negative("min_seconds", self.min_seconds)

    @property
    def modality(self) -> Modality:
        """Frames (T, H, W, 3), as many as the film is long."""
        return Modality("frames", (-1, self.size, self.size, 3))

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return _parameters(self)

    def __call__(self, path: Path) -> Reading:
        """Read a film."""
        frames, seconds = read_frames(path, self.fps, self.size)
        _check_length(path, seconds, self.min_seconds)
        return Reading(frames, seconds)


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads a picture in colour, see :func:`read_colours`.

    Args:
        size: Height and width in pixels.
    """

    size: int = 224

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)

    @property
    def modality(self) -> Modality:
        """An image (H, W, 3)."""
        return Modality("image", (self.size, self.size, 3))

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return _parameters(self)

    def __call__(self, path: Path) -> Reading:
        """Read a picture."""
        return Reading(read_colours(path, self.size))


@dataclasses.dataclass(frozen=True)
class ArrayReader:
    """Reads an array of numbers from a ``.npy`` file, as float32. Nothing in the file is ever executed.

    Args:
        kind: What the array is: a ``vector`` (d) or a ``sequence`` (T, d) whose length T may differ between files.
        width: Number of features d; None takes that of the first file for all.
    """

    kind: Literal["vector", "sequence"] = "vector"
    width: int | None = None

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("vector", "sequence"))
        if self.width is not None:
            check_integer("width", self.width, 1)

    @property
    def modality(self) -> Modality:
        """A vector (d) or a sequence (T, d)."""
        kind: Kind = self.kind
        row = () if self.width is None else (self.width,)
        return Modality(kind, (-1, *row) if kind == "sequence" else row)

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return _parameters(self)

    def __call__(self, path: Path) -> Reading:
        """Read an array."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no array {path}.")
        try:
            with path.open("rb") as file:
                values = np.load(file, allow_pickle=False)
        except Exception as error:  # numpy's are of a dozen kinds, some of more than one line
            raise ValueError(
                f"{path} cannot be read as a .npy file of numbers: {' '.join(str(error).split())}"
            ) from error
        dimensions = 1 if self.kind == "vector" else 2
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
            raise ValueError(f"{path} should hold one array of real numbers.")
        if values.ndim != dimensions:
            raise ValueError(
                f"{path} should hold a {self.kind} of {dimensions} dimensions. Found shape {values.shape}."
            )
        return Reading(np.ascontiguousarray(values, dtype=np.float32))


def reader_of(parameters: Mapping[str, Any]) -> AudioReader | VideoReader | ImageReader | ArrayReader:
    """The reader with these ``parameters``, so that new files are read as the prepared ones were.

    Raises:
        ValueError: If there is no such reader, or it reads otherwise by now.
    """
    kinds = {kind.__name__: kind for kind in (AudioReader, VideoReader, ImageReader, ArrayReader)}
    given = dict(parameters)
    kind = kinds.get(given.pop("reader", ""))
    if kind is None or given.pop("version", None) != kind.version:
        raise ValueError(f"This version of bmlr cannot read files as {dict(parameters)}: prepare the data again.")
    if "spectrogram" in given:
        given["spectrogram"] = Spectrogram(**given["spectrogram"])
    return kind(**given)


def _parameters(reader: Any) -> dict[str, Any]:
    return {"reader": type(reader).__name__, "version": reader.version, **dataclasses.asdict(reader)}


def _check_length(path: Path, seconds: float, least: float) -> None:
    if seconds < least:
        raise ValueError(f"{path} is too short: {seconds:.2f} s, at least {least:g} s are needed.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """The file opened by FFmpeg; whatever goes wrong inside becomes a ValueError that names it."""
    import av

    if not path.is_file():
        raise FileNotFoundError(f"There is no film or recording {path}.")
    if (declared := _declared_size(path)) is not None and declared > (size := path.stat().st_size):
        raise ValueError(f"{path} cannot be read: it is truncated: its structure says {declared} bytes, it has {size}.")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path}", container_options=options, metadata_errors="replace") as container:
            yield container
    except av.FFmpegError as error:
        reason = (
            "it is damaged, truncated or no media file" if isinstance(error, (ValueError, EOFError)) else error.strerror
        )
        raise ValueError(f"{path} cannot be read: {reason}.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def _declared_size(path: Path) -> int | None:
    """The size an mp4 or flv file should at least have, from the sizes its pieces declare; None for other files.

    FFmpeg reads what there is of a file that was cut off in its last piece, and says nothing.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head[4:] in _BOXES:
            return _end_of_boxes(file)
        return _end_of_tags(file) if head[:3] == b"FLV" else None


def _end_of_boxes(file: BinaryIO) -> int:
    """Where the last of an mp4 file's boxes should end; what follows the last known one is left alone."""
    end = 0
    while True:
        file.seek(end)
        head = file.read(16)
        if head[4:8] not in _BOXES:
            return end
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if size < 8:  # 0: the box takes the rest of the file
            return end
        end += size


def _end_of_tags(file: BinaryIO) -> int:
    """Where the last of a flash film's tags should end; what follows the last known one is left alone."""
    file.seek(5)
    end = int.from_bytes(file.read(4), "big")
    while True:
        file.seek(end + 4)  # the size of the tag before
        head = file.read(11)
        if len(head) < 4 or head[0] not in {8, 9, 18}:  # sound, picture, description
            return end
        end += 4 + 11 + int.from_bytes(head[1:4], "big")


class _Watch:
    """Follows a file's packets, to tell at the end whether it held all its header says."""

    def __init__(self, container: InputContainer, stream: av.AudioStream | av.VideoStream) -> None:
        self.container, self.stream = container, stream
        self.ends: dict[int, float] = {}

    def packets(self) -> Iterator[av.Packet[Any]]:
        """The packets of the chosen stream; those of the others are looked at only."""
        for packet in self.container.demux():
            if packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                index = packet.stream.index
                self.ends[index] = max(end, self.ends.get(index, end))
            if packet.stream.index == self.stream.index:
                yield packet

    @property
    def declares(self) -> bool:
        """Whether the duration is written in the file."""
        return bool(_DECLARING & set(self.container.format.name.split(",")))

    def check(self) -> None:
        """Raise a ValueError if the file ended early."""
        if not self.declares:
            return
        stream, container = self.stream, self.container
        if stream.duration and stream.time_base is not None:
            declared = float(stream.duration * stream.time_base)
            end = self.ends.get(stream.index, 0.0) - float((stream.start_time or 0) * stream.time_base)
        elif container.duration:
            declared = container.duration / 1e6
            end = max(self.ends.values(), default=0.0) - (container.start_time or 0) / 1e6
        else:
            return
        if end < declared - max(_TOLERANCE, declared / 100):
            raise ValueError(f"it is truncated: its header says {declared:.2f} s, it has {max(end, 0):.2f} s")


def _decode_sound(container: InputContainer, sample_rate: int) -> tuple[np.ndarray, int]:
    """Samples of the first audio stream, mean over the channels, and their rate."""
    import av

    stream = container.streams.audio[0]
    _check_codec(stream)
    to_float = av.AudioResampler(format="fltp")  # the format only: layout and rate stay
    watch = _Watch(container, stream)
    blocks: list[np.ndarray] = []
    samples = 0
    for packet in watch.packets():
        for frame in stream.decode(packet):
            samples += frame.samples
            check_length(samples, stream.rate, sample_rate)
            blocks += [plain.to_ndarray().mean(axis=0) for plain in to_float.resample(frame)]
    if blocks:
        blocks += [plain.to_ndarray().mean(axis=0) for plain in to_float.resample(None)]
    watch.check()
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), stream.rate


def _choose_frames(container: InputContainer, fps: float, size: int) -> tuple[list[float], list[np.ndarray], float]:
    """Times, frames and length of the film in seconds, see :func:`read_frames`."""
    stream = container.streams.video[0]
    _check_codec(stream)
    _check_pixels(stream)
    stream.thread_type = "NONE"
    watch = _Watch(container, stream)
    step = 1 / float(stream.average_rate or 25)
    kept = _Sampler(fps, lambda frame: _square(_upright(frame), size), _MOST_BYTES // (3 * size * size))
    for packet in watch.packets():
        for frame in stream.decode(packet):
            _check_pixels(frame)
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            kept.see(frame, None if frame.pts is None else frame.time, length)
    watch.check()
    declared = container.duration / 1e6 if container.duration and watch.declares else None
    return kept.finish(declared)


def _check_codec(stream: av.AudioStream | av.VideoStream) -> None:
    if getattr(stream, "codec_context", None) is None:
        raise ValueError("its codec is unknown")


def _check_pixels(frame: av.VideoStream | av.VideoFrame) -> None:
    if frame.width * frame.height > _MOST_PIXELS:
        raise ValueError(f"it has frames of {frame.width} × {frame.height} pixels, at most {_MOST_PIXELS} are read")


class _Sampler:
    """Takes the frame seen at each wanted time out of a stream of frames, keeping no others.

    Args:
        fps: Frames per second to take.
        keep: Makes of a frame what is kept of it; the whole frame may be large.
        most: Number of frames above which a film is refused.
    """

    def __init__(self, fps: float, keep: Callable[[Any], Any], most: int) -> None:
        self.fps, self.keep, self.most = fps, keep, most
        self.start: float | None = None
        self.end = 0.0
        self.last: tuple[float, Any] | None = None
        self.halves: list[tuple[float, Any]] = []  # of a film shorter than half an interval
        self.times: list[float] = []
        self.frames: list[Any] = []

    def see(self, frame: Any, time: float | None, length: float) -> None:
        """The next frame, its time in seconds (None where the file has no times) and how long it is seen."""
        if self.start is None:
            self.start = 0.0 if time is None else time
        place = self.end if time is None else time - self.start
        if place + length > MOST_SECONDS:
            raise ValueError(f"it is too long: at most {MOST_SECONDS} s are read")
        if self.last is not None and place <= self.last[0]:
            return  # a frame that comes too late to be shown
        if self.last is not None:
            self._take(self.last[1], place)
        self.last = (place, frame)
        if not self.frames:
            self.halves.append((place, self.keep(frame)))
            while len(self.halves) > 1 and self.halves[1][0] <= place / 2:  # the middle cannot lie before the second
                self.halves.pop(0)
        else:
            self.halves.clear()
        self.end = place + length

    def finish(self, declared: float | None) -> tuple[list[float], list[Any], float]:
        """What was taken, and the length of the film, which the last frame cannot make longer than ``declared``."""
        if self.last is not None:
            if declared is not None and self.last[0] < declared:
                self.end = min(self.end, declared)
            self._take(self.last[1], self.end)
        if not self.frames and self.last is not None:
            middle = self.end / 2
            seen = [frame for time, frame in self.halves if time <= middle]
            self.times, self.frames = [middle], [seen[-1]]
        return self.times, self.frames, self.end

    def _take(self, frame: Any, until: float) -> None:
        """Take ``frame`` for every wanted time before ``until``."""
        kept = None
        while (wanted := (len(self.frames) + 0.5) / self.fps) < until:
            if len(self.frames) >= self.most:
                raise ValueError(f"it is too long: at most {self.most} frames of this size are taken from a film")
            kept = self.keep(frame) if kept is None else kept
            self.times.append(wanted)
            self.frames.append(kept)


def _upright(frame: av.VideoFrame) -> Image.Image:
    picture: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _square(picture: Image.Image, size: int) -> np.ndarray:
    return np.asarray(picture.resize((size, size), _bilinear()), dtype=np.uint8)


@functools.cache
def _bilinear() -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BILINEAR
