"""Read images."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bmlr._checks import check_integer
from bmlr.data._base import Modality
from bmlr.data.readers._base import FileContent

if TYPE_CHECKING:
    from PIL import Image
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
from bmlr.data.readers._base import MAX_PIXELS, reader_parameters

_PICTURES = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # pillow's others include PostScript, which is code


def read_rgb_image(path: Path, size: int) -> np.ndarray:
    """An image in colour, resized to a square, shape (size, size, 3), uint8; transparent pixels count as black.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as an image of at most 50 million pixels; the message names it.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pillow reads some damaged files with no more than a warning
            with Image.open(path, formats=_PICTURES) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width} × {image.height} pixels, at most {MAX_PIXELS} are read")
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are of type {image.mode}, which has no plain conversion to 8 bits")
                turned = ImageOps.exif_transpose(image).convert("RGBA")
                opaque = Image.new("RGBA", turned.size, "black")
                opaque.alpha_composite(turned)
                return resize_to_square(opaque.convert("RGB"), size)
    except Exception as error:  # Pillow's are of a dozen kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads an image in colour, see :func:`read_rgb_image`.

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
        return reader_parameters(self)

    def __call__(self, path: Path) -> FileContent:
        """Read an image."""
        return FileContent(read_rgb_image(path, self.size))


def resize_to_square(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), _bilinear()), dtype=np.uint8)


@functools.cache
def _bilinear() -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BILINEAR


_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}  # 8 bits per channel at most: what converts to grey without loss


_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # pillow's others include PostScript, which is code


_MAX_PIXELS = 50_000_000


def read_gray_image(path: Path, height: int, width: int) -> np.ndarray:
    """An image in grey, resized to (height, width), float32 in [0, 1]; transparent pixels count as black.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as an image of 8 bits per channel; the message names it.
    """
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pillow reads some damaged files with no more than a warning
            with Image.open(path, formats=_FORMATS) as image:
                complaint = _complaint(image)
                if complaint is None:
                    opaque = Image.new("RGBA", image.size, "black")
                    opaque.alpha_composite(image.convert("RGBA"))
                    grey = opaque.convert("L").resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's are of a dozen kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if complaint is not None:
        raise ValueError(f"{path} cannot be read as an image: {complaint}.")
    return np.asarray(grey, dtype=np.float32) / 255


def _complaint(image: Image.Image) -> str | None:
    """What is wrong with an image that has been opened but not decoded yet."""
    if image.width * image.height > _MAX_PIXELS:
        return f"it has {image.width} × {image.height} pixels, at most {_MAX_PIXELS} are read"
    if image.mode not in _MODES:
        return f"its pixels are of type {image.mode}, which has no plain conversion to 8 bits of grey"
    return None
