"""Read images."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import Modality
from bmlr.data.readers._base import MAX_PIXELS, FileContent, reader_parameters

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # others include PostScript, which is code
_GRAY_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}  # 8 bits per channel at most: convert to gray without loss


def read_rgb_image(path: Path, size: int) -> np.ndarray:
    """Read an image in colour, upright, resized to a square.

    Transparent pixels become black.

    Returns:
        Shape (size, size, 3), uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no image of at most 50 million pixels; the message names it.
    """
    from PIL import ImageOps

    def convert(image: Image.Image) -> np.ndarray:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are of type {image.mode}, which has no plain conversion to 8 bits")
        return resize_to_square(_on_black(ImageOps.exif_transpose(image)).convert("RGB"), size)

    return _read_image(path, convert)


def read_gray_image(path: Path, height: int, width: int) -> np.ndarray:
    """Read an image in gray, resized; transparent pixels become black.

    Returns:
        Shape (height, width), float32, in [0, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no image of 8 bits per channel and at most 50 million pixels; the message names it.
    """

    def convert(image: Image.Image) -> np.ndarray:
        if image.mode not in _GRAY_MODES:
            raise ValueError(f"its pixels are of type {image.mode}, which has no plain conversion to 8 bits of gray")
        gray = _on_black(image).convert("L").resize((width, height), _bilinear())
        return np.asarray(gray, dtype=np.float32) / 255

    return _read_image(path, convert)


def _read_image(path: Path, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pillow reads some damaged files with a warning only
            with Image.open(path, formats=_FORMATS) as image:
                # Before the first access to the pixels, which unpacks them all.
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width} × {image.height} pixels, at most {MAX_PIXELS} are read")
                return convert(image)
    except Exception as error:  # pillow raises a dozen kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _on_black(image: Image.Image) -> Image.Image:
    from PIL import Image

    opaque = Image.new("RGBA", image.size, "black")
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reader of images in colour; see :func:`read_rgb_image`.

    Args:
        size: Height and width in pixels.

    Raises:
        ValueError: If a parameter is out of its range.
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
        return reader_parameters(self)

    def __call__(self, path: Path) -> FileContent:
        """Read an image."""
        return FileContent(read_rgb_image(path, self.size))


def resize_to_square(image: Image.Image, size: int) -> np.ndarray:
    """Resize an image bilinearly with antialiasing; its aspect ratio is not kept."""
    return np.asarray(image.resize((size, size), _bilinear()), dtype=np.uint8)


@functools.cache
def _bilinear() -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BILINEAR
