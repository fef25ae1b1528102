"""Read images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import Modality
from bmlr.data.readers._base import MAX_PIXELS, FileContent, FileReader, Interval, check_pixels
from bmlr.data.readers._files import blame_bytes, check_file

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # others include PostScript, which is code
_DEEP_MODES = {"I;16", "I;16B", "I;16L", "I;16N"}  # 16 bits of gray
_ORIENTATION = 0x0112  # EXIF tag
_PNG = b"\x89PNG\r\n\x1a\n"


def read_rgb_image(path: Path, size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image in colour, upright, resized to a square.

    It is turned and mirrored as its EXIF orientation says; metadata that is broken or odd is passed over. Transparent
    pixels become black. Of an animation the first image is read. Gray of 16 bits is reduced to 8.

    Returns:
        Shape (size, size, 3), uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no image of at most ``max_pixels`` pixels; the message names it.
        OSError: If the file cannot be read now.
    """

    def convert(image: Image.Image) -> np.ndarray:
        return resize_to_square(_on_black(image).convert("RGB"), size)

    return _read_image(path, convert, max_pixels)


def read_gray_image(path: Path, height: int, width: int) -> np.ndarray:
    """Read an image in gray, upright, resized.

    See :func:`read_rgb_image`.

    Returns:
        Shape (height, width), float32, in [0, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no image of at most 50 million pixels; the message names it.
        OSError: If the file cannot be read now.
    """

    def convert(image: Image.Image) -> np.ndarray:
        gray = _on_black(image).convert("L").resize((width, height), _bilinear())
        return np.asarray(gray, dtype=np.float32) / 255

    return _read_image(path, convert, MAX_PIXELS)


def _read_image(path: Path, convert: Callable[[Image.Image], np.ndarray], max_pixels: int) -> np.ndarray:
    from PIL import Image

    path = Path(path)
    check_file(path, "image")
    with (
        blame_bytes(path, "an image", _describe_error),
        _without_pixel_limit(),
        path.open("rb") as file,
        Image.open(_without_broken_metadata(file), formats=_FORMATS) as image,
    ):
        # Before the first access to the pixels, which unpacks them all.
        check_pixels(image.width, image.height, max_pixels, "")
        image.load()
        return convert(_upright(_to_8_bits(image)))


@contextlib.contextmanager
def _without_pixel_limit() -> Iterator[None]:
    """Switch off pillow's limit of pixels and its warnings.

    The warnings are about metadata.
    """
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _without_broken_metadata(file: BinaryIO) -> BinaryIO:
    """The file, or a copy without pieces of a PNG's metadata with a wrong checksum.

    Pillow takes such a file for no image; viewers pass over the piece.
    """
    sound, start, broken = [_PNG], len(_PNG), False
    if file.read(start) == _PNG:
        while len(head := file.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            # Small letters mark what is no need for the pixels; transparency is, all the same.
            if name[0] & 32 and name != b"tRNS":
                content = file.read(length + 4)
                if int.from_bytes(content[length:], "big") != zlib.crc32(name + content[:length]):
                    sound.append(_read_between(file, start, file.tell() - len(content) - 8))
                    start, broken = file.tell(), True
            else:
                file.seek(length + 4, io.SEEK_CUR)
    if broken:
        return io.BytesIO(b"".join([*sound, _read_between(file, start, None)]))
    file.seek(0)
    return file


def _read_between(file: BinaryIO, start: int, end: int | None) -> bytes:
    """Bytes of a file, which is left where it was."""
    position = file.tell()
    file.seek(start)
    content = file.read() if end is None else file.read(end - start)
    file.seek(position)
    return content


def _describe_error(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    unknown = isinstance(error, UnidentifiedImageError)
    return f"it is damaged, or none of {', '.join(_FORMATS)}" if unknown else str(error)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Image with 8 bits per channel."""
    from PIL import Image

    if image.mode in _DEEP_MODES:
        values = np.asarray(image)
        if values.max() < 4096:  # 12 bits or fewer in 16: reduced to 8 bits the image would be nearly black
            raise ValueError(
                f"its 16-bit pixels reach {values.max()} of 65535, for which there is no plain conversion to 8 bits"
            )
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of type {image.mode}, which has no plain conversion to 8 bits")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Image turned and mirrored as its EXIF orientation says."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # broken metadata are not broken pixels: viewers show such an image as it is
        return image
    transpositions = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(transpositions[orientation]) if orientation in transpositions else image


def _on_black(image: Image.Image) -> Image.Image:
    from PIL import Image

    opaque = Image.new("RGBA", image.size, "black")
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque


@dataclasses.dataclass(frozen=True)
class ImageReader(FileReader):
    """Reader of images in colour; see :func:`read_rgb_image`.

    Args:
        size: Height and width in pixels.
        max_pixels: Images of more pixels are refused.

    Raises:
        ValueError: If a parameter is out of its range.
    """

    size: int = 224
    max_pixels: int = MAX_PIXELS

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)
        check_integer("max_pixels", self.max_pixels, 1)

    @property
    def modality(self) -> Modality:
        """An image (H, W, 3)."""
        return Modality("image", (self.size, self.size, 3))

    def __call__(self, path: Path, interval: Interval | None = None) -> FileContent:
        """Read an image."""
        return FileContent(read_rgb_image(path, self.size, self.max_pixels))


def resize_to_square(image: Image.Image, size: int) -> np.ndarray:
    """Resize an image bilinearly with antialiasing; its aspect ratio is not kept."""
    return np.asarray(image.resize((size, size), _bilinear()), dtype=np.uint8)


@functools.cache
def _bilinear() -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BILINEAR
