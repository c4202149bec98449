"""The only decoder of images: a path, bytes or a Pillow image in, an upright RGB picture out, or a named error."""

import functools
import io
import os
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from captioner.errors import CaptionerError

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".heic", ".heif"}  # HEIC needs a Pillow plug-in; without one it is an error, not an omission
)
"""Lower-case suffixes that count as images when a folder is searched. The decoder itself goes by content."""

MAX_PIXELS = 178_956_970  # where Pillow itself refuses; ours does not move when other code changes Pillow's
MAX_BYTES = 2**30

# Pillow opens more than this, and hands EPS to an external PostScript interpreter: name what we accept.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")

_UPRIGHT = {  # EXIF 2.3, tag 0x0112
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(CaptionerError):
    """An image that cannot be used.

    Attributes:
        source: the file's path, or a few words for an image in memory.
        reason: `missing`, `not_a_file`, `no_permission`, `empty`, `not_an_image`, `unsupported`, `truncated`,
            `damaged` or `too_large`.
        message: the same for people, without the path.
    """

    def __init__(self, source: str, reason: str, message: str) -> None:
        super().__init__(source, reason, message)  # all three, so that it crosses process boundaries whole
        self.source, self.reason, self.message = source, reason, message

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


class ReadableImage(Protocol):
    """An encoded image that is fetched when it is needed: an open file, or a cell of a table on disk."""

    def read(self) -> bytes: ...


def load_image(source: str | Path | bytes | Image.Image | ReadableImage, min_size: int | None = None) -> Image.Image:
    """Decode an image to upright RGB, 8 bits a channel.

    `info["size"]` is the width and height of the upright picture before any scaling.

    The first frame of an animation; transparency over white; EXIF orientation applied; 16-bit and wider greyscale
    scaled to 8 bits, not clipped. A picture that ends early is an error, not a picture with a grey half.

    Args:
        source: a path, an encoded image, an object whose `read()` gives one, or a Pillow image (which is left as is).
        min_size: pixels that the shorter side must keep. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size
            as far as that allows, several times faster; other formats ignore it.

    Raises:
        ImageError: naming the file and the reason.
    """
    name = _name(source)
    image = source if isinstance(source, Image.Image) else _open(_read(source, name), name)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(name, "too_large", f"{width}x{height} pixels are over the limit of {MAX_PIXELS:,}")
    if width * height == 0:
        raise ImageError(name, "empty", "the image has no pixels")
    if min_size is not None and image is not source:
        image.draft("RGB", (min_size, min_size))  # libjpeg's scaled inverse DCT
    try:
        image.load()
        rgb = _to_rgb(image)
    except Exception as error:  # whatever a decoder trips over in damaged data
        raise _explain(error, name) from error
    orientation = _orientation(image)
    method = _UPRIGHT.get(orientation)
    upright = rgb.transpose(method) if method is not None else rgb.copy() if rgb is image else rgb
    # An orientation left behind would turn the picture again.
    upright.info = {"size": (height, width) if orientation in (5, 6, 7, 8) else (width, height)}
    return upright


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return f"image in memory ({len(source):,} bytes)"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "image in memory")
    return str(getattr(source, "name", source))


def _read(source: str | Path | bytes | ReadableImage, name: str) -> bytes:
    try:
        if isinstance(source, bytes):
            data = source
        elif isinstance(source, str | os.PathLike):
            if os.path.isdir(source):
                os.scandir(source).close()  # a folder that a search for images could not read says why
            if os.path.exists(source) and not os.path.isfile(source):
                raise ImageError(name, "not_a_file", "is a folder or device, not an image file")
            if os.path.getsize(source) > MAX_BYTES:
                raise ImageError(name, "too_large", f"the file is over the limit of {MAX_BYTES:,} bytes")
            data = Path(source).read_bytes()
        else:
            data = source.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(name, "missing", "no such file") from error
    except PermissionError as error:
        raise ImageError(name, "no_permission", "may not be read: permission denied") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(name, "missing", f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise ImageError(name, "empty", "the file is empty (zero bytes)")
    return data


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header; pixels are decoded later."""
    file = io.BytesIO(data)
    try:
        image = Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp":
            message = "HEIC, AVIF or video, which this Pillow cannot decode (for HEIC: pillow-heif, or convert to JPEG)"
            raise ImageError(name, "unsupported", message) from error
        if data.startswith(_SIGNATURES):
            raise ImageError(name, "damaged", "the image's header is damaged or cut short") from error
        raise ImageError(name, "not_an_image", "not an image in a format we read, whatever its name says") from error
    except Exception as error:  # as above
        raise _explain(error, name) from error
    # Half a JPEG followed by zeros (a preallocated download) decodes without complaint, to half a picture. Pillow has
    # read up to the scan; what ends it cannot occur within it.
    if image.format == "JPEG" and data.rfind(b"\xff\xd9", file.tell()) < 0:
        raise ImageError(name, "truncated", "the image is truncated: it has no end marker")
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _explain(error: Exception, name: str) -> ImageError:
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning | MemoryError):
        return ImageError(name, "too_large", f"too large to decode: {detail}")
    if isinstance(error, EOFError) or "truncated" in detail.lower():
        return ImageError(name, "truncated", "the image is truncated: the file ends before the picture does")
    return ImageError(name, "damaged", f"the image is damaged: {detail}")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata does not spoil a picture, and Pillow's reader raises many kinds
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey_to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image
    if image.mode == "La":  # the one mode with no direct way
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(rgba, mask=rgba)
    return canvas


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Integers of 16 bits by their full range, floats as 0..1 or 0..255, and anything beyond by its own range."""
    values = np.asarray(image)
    known = np.where(np.isfinite(values), values, 0).astype(np.float32)
    low, high = float(known.min()), float(known.max())
    if image.mode == "F":
        floor, ceiling = (0.0, 1.0) if low >= 0 and high <= 1 else (0.0, 255.0)
    else:
        floor, ceiling = 0.0, 65535.0
    if low < floor or high > ceiling:
        floor, ceiling = low, high
    grey = np.rint((known - floor) * (255 / ((ceiling - floor) or 1))).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)
