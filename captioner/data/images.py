"""Decodes images: a file, bytes, an array or a Pillow image becomes an upright RGB image, or raises `ImageError`."""

import functools
import importlib
import io
import os
import re
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from captioner.data.arrays import Array, array_to_image
from captioner.data.encoded_images import PNG_SIGNATURE, has_all_scans, same_pixels, without_ancillary_chunks
from captioner.errors import CaptionerError

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".heic", ".heif", ".jxl"}  # the last three need a Pillow plug-in, see `_PLUGINS`
)
"""Lower-case suffixes of images, for searching folders. The decoder itself goes by content."""

MAX_PIXELS = 178_956_970  # Pillow's own limit, which other code may change
MAX_BYTES = 2**30

# Pillow opens other formats too, and passes EPS to an external PostScript interpreter.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "JXL")

_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES = (b"\xff\xd8\xff", PNG_SIGNATURE, b"GIF8", b"RIFF", b"BM", *_TIFF_SIGNATURES)

_JPEG_END = b"\xff\xd9"

# TIFF 6.0: compressions that every build of libtiff decodes.
_TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
_SAMPLE_FORMAT = 339

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
        message: the reason in words, without the path.
    """

    def __init__(self, source: str, reason: str, message: str) -> None:
        super().__init__(source, reason, message)  # all three, so that it can be pickled
        self.source, self.reason, self.message = source, reason, message

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


class ReadableImage(Protocol):
    """An encoded image that is read on demand: an open binary file, or a cell of a table on disk."""

    def read(self) -> bytes: ...


ImageInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Array | ReadableImage
"""The inputs of `load_image`; `Array` includes NumPy arrays and torch tensors."""


def load_image(source: ImageInput, min_size: int | None = None, max_pixels: int | None = None) -> Image.Image:
    """Decode an image to upright RGB, 8 bits a channel.

    Animations give their first frame; transparency is drawn over white; EXIF orientation is applied; greyscale of 16
    bits or more is scaled to 8 bits, not clipped. Truncated images raise an error instead of being filled with grey.

    In the result, `info["size"]` is the width and height of the upright image before any scaling; `info["warning"]`,
    if present, names the file and a fault that did not affect the pixels.

    Args:
        source: a path, an encoded image, an object whose `read()` returns one (open files are read from the start), an
            array of pixels (see `array_to_image`), or a Pillow image (which is not modified).
        min_size: pixels that the shorter side must keep. JPEGs are decoded at the smallest of 1/8, 1/4, 1/2 and full
            size that does so, which is several times faster; other formats ignore it.
        max_pixels: width times height that an encoded image may have; default: `MAX_PIXELS`, which is never exceeded.

    Raises:
        ImageError: with the file and the reason.
    """
    name = _name(source)
    if isinstance(source, Image.Image):
        return _upright(source, source.size, name)
    if isinstance(source, Array) and not isinstance(source, str | bytes):  # NumPy's strings are both
        try:
            image = array_to_image(source)
        except (ValueError, TypeError, RuntimeError) as error:  # libraries raise the last two
            raise ImageError(name, "unsupported", str(error)) from error
        return _upright(image, image.size, name)
    data = _read(source, name)
    try:
        return _decode(data, name, min_size, max_pixels)
    except ImageError:
        bare = without_ancillary_chunks(data)
        if bare is None:
            raise
    return _decode(bare, name, min_size, max_pixels)


def open_header(data: bytes) -> ImageFile.ImageFile:
    """Open an encoded image for its metadata; no pixel is decoded.

    Raises:
        ImageError: it is no image in a supported format.
    """
    return _open(data, "image in memory")


def is_url(name: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*://|data:", name, re.IGNORECASE) is not None


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        return f"{name[:40]}..." if name.startswith("data:") else name
    if isinstance(source, bytes | bytearray | memoryview):
        return f"image in memory ({len(source):,} bytes)"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "image in memory")
    if isinstance(source, Array):
        return f"array of shape {tuple(getattr(source, 'shape', ()))}"
    if isinstance(source, io.IOBase):
        return str(getattr(source, "name", "image in memory"))
    return f"{source!s:.100}"


def _read(source: object, name: str) -> bytes:
    try:
        data = _fetch(source, name)
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_url(name):
            raise ImageError(name, "missing", "is a URL, and URLs are not fetched: download the image first") from error
        raise ImageError(name, "missing", "no such file") from error
    except PermissionError as error:
        raise ImageError(name, "no_permission", "may not be read: permission denied") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, a closed file
        raise ImageError(name, "missing", f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise ImageError(name, "empty", "the file is empty (zero bytes)")
    return data


def _fetch(source: object, name: str) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        if os.path.isdir(source):
            os.scandir(os.fsdecode(source)).close()  # raises the error of an unreadable folder
        if os.path.exists(source) and not os.path.isfile(source):
            raise ImageError(name, "not_a_file", "is a folder or device, not an image file")
        if os.path.getsize(source) > MAX_BYTES:
            raise ImageError(name, "too_large", f"the file is over the limit of {MAX_BYTES:,} bytes")
        with open(source, "rb") as file:
            return file.read()
    if isinstance(source, io.TextIOBase):
        raise ImageError(name, "not_an_image", "the file is open as text: open it with mode 'rb'")
    read = getattr(source, "read", None)
    if not callable(read):
        kinds = "a path, bytes, an open file, a Pillow image, an array or a tensor"
        raise ImageError(name, "not_an_image", f"{type(source).__name__} is not an image: give {kinds}")
    if isinstance(source, io.IOBase) and source.seekable():
        source.seek(0)
    data = read()
    if not isinstance(data, bytes):
        raise ImageError(name, "not_an_image", f"its read() gives {type(data).__name__}, not bytes")
    return data


def _decode(data: bytes, name: str, min_size: int | None, max_pixels: int | None) -> Image.Image:
    image = _open(data, name)
    _check_size(image.size, name, max_pixels)
    ended = _with_end_marker(image, data, name)
    if ended is not None:
        image = _open(ended, name)
    size = image.size
    if min_size is not None:
        image.draft("RGB", (min_size, min_size))  # libjpeg's scaled inverse DCT
    upright = _upright(image, size, name)
    if ended is not None:
        upright.info["warning"] = f"{name}: the JPEG has no end marker, but the picture is whole"
    return upright


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header; the pixels are decoded later."""
    kind = _plugin_kind(data)
    if kind and not _load_plugin(kind):
        raise ImageError(name, "unsupported", _PLUGINS[kind].missing)
    try:
        image = Image.open(io.BytesIO(data), formats=_formats(kind))
    except UnidentifiedImageError as error:
        raise _unidentified(data, name) from error
    except Exception as error:  # decoders raise many kinds on damaged data
        raise _explain(error, name) from error
    _check_size(image.size, name)
    return image


@functools.cache
def _formats(plugin: str | None) -> tuple[str, ...]:
    """The formats that Pillow can open, now that `plugin` is loaded."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


class _Plugin(NamedTuple):
    """A package that teaches Pillow a format, and what to say if it is not installed."""

    module: str
    missing: str


_PLUGINS = {
    "HEIF": _Plugin("pillow_heif", "a HEIC image: pip install 'captioner[heif]' to read it, or convert it to JPEG"),
    "JXL": _Plugin("pillow_jxl", "a JPEG XL image: pip install pillow-jxl-plugin to read it, or convert it to JPEG"),
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO 23008-12
_JXL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")  # ISO 18181-2


def _plugin_kind(data: bytes) -> str | None:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]:
        return "HEIF"
    return "JXL" if data.startswith(_JXL_SIGNATURES) else None


@functools.cache
def _load_plugin(kind: str) -> bool:
    try:
        module = importlib.import_module(_PLUGINS[kind].module)
    except ImportError:
        return False
    if kind == "HEIF":  # the other registers itself
        module.register_heif_opener()
    return True


def _check_size(size: tuple[int, int], name: str, max_pixels: int | None = None) -> None:
    width, height = size
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if width * height > limit:
        raise ImageError(name, "too_large", f"{width}x{height} pixels are over the limit of {limit:,}")
    if width * height == 0:
        raise ImageError(name, "empty", "the image has no pixels")


def _upright(image: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    """Decode to RGB and apply the EXIF orientation; `size` is the size before any scaling."""
    _check_size(size, name)
    try:
        image.load()
        rgb = _to_rgb(image)
    except Exception as error:  # as above
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            raise _explain_tiff(error, image.tag_v2, name) from error
        raise _explain(error, name) from error
    orientation = _orientation(image)
    method = _UPRIGHT.get(orientation)
    upright = rgb.transpose(method) if method is not None else rgb.copy() if rgb is image else rgb
    # Drop the orientation, or other code would apply it again.
    upright.info = {"size": size[::-1] if orientation in (5, 6, 7, 8) else size}
    return upright


# Explaining what is wrong with a file


def _explain(error: Exception, name: str) -> ImageError:
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning | MemoryError):
        return ImageError(name, "too_large", f"too large to decode: {detail}")
    if isinstance(error, EOFError) or "truncated" in detail.lower():
        return ImageError(name, "truncated", "the image is truncated: the file ends before the picture does")
    if re.search("unsupported|not supported|not available|cannot handle", detail, re.IGNORECASE):
        return ImageError(name, "unsupported", f"this kind of image is not supported: {detail}")
    return ImageError(name, "damaged", f"the image is damaged: {detail}")


def _unidentified(data: bytes, name: str) -> ImageError:
    """Explain why Pillow does not recognise the data."""
    if data[4:8] == b"ftyp":
        message = "AVIF or video, which this Pillow cannot decode; convert it to JPEG"
        return ImageError(name, "unsupported", message)
    if data.startswith(_TIFF_SIGNATURES):
        return _unidentified_tiff(data, name)
    if not data.startswith(_SIGNATURES):
        return ImageError(name, "not_an_image", "not an image in a supported format, whatever its name says")
    if data.startswith(b"\xff\xd8\xff"):
        try:
            JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        except SyntaxError as error:  # "cannot handle 12-bit layers"
            if "cannot handle" in str(error):
                return _explain(error, name)
    return ImageError(name, "damaged", "the image's header is damaged or truncated")


def _unidentified_tiff(data: bytes, name: str) -> ImageError:
    """Tell a TIFF that Pillow has no mode or decoder for from a damaged one: its tags are sound."""
    damaged = ImageError(name, "damaged", "the image's header is damaged or truncated")
    file = io.BytesIO(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if b"+" in data[:4] else 8))
        file.seek(tags.next)
        tags.load(file)
        starts, lengths = (tags.get(new, tags.get(old)) for new, old in ((324, 273), (325, 279)))  # of tiles or strips
        end = max(map(sum, zip(starts, lengths, strict=True)))
        if tags[TiffImagePlugin.IMAGEWIDTH] * tags[TiffImagePlugin.IMAGELENGTH] == 0 or end > len(data):
            return damaged
    except Exception:  # as above
        return damaged
    return ImageError(name, "unsupported", f"{_describe_tiff(tags)} is not supported: convert it to 8-bit RGB")


def _explain_tiff(error: Exception, tags: TiffImagePlugin.ImageFileDirectory_v2, name: str) -> ImageError:
    explained = _explain(error, name)
    if explained.reason == "damaged" and tags.get(TiffImagePlugin.COMPRESSION, 1) not in _TIFF_COMPRESSIONS:
        message = f"{_describe_tiff(tags)} is not supported here, or the file is damaged: {error}"
        return ImageError(name, "unsupported", message)
    return explained


def _describe_tiff(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    bits, sample_format = (int(np.max(tags.get(tag, 1))) for tag in (TiffImagePlugin.BITSPERSAMPLE, _SAMPLE_FORMAT))
    kind = {2: "signed ", 3: "float ", 5: "complex ", 6: "complex "}.get(sample_format, "")
    compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    channels = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    named = TiffImagePlugin.COMPRESSION_INFO.get(compression, compression)
    return f"a TIFF of {channels} {kind}channels of {bits} bits, compression {named},"


# Repairing faults that do not affect the pixels


def _with_end_marker(image: Image.Image, data: bytes, name: str) -> bytes | None:
    """Return a complete JPEG that only lacks its end marker with the marker added; None for any other image.

    Half a JPEG followed by zeros (a preallocated download) would decode to half a picture without an error.

    Raises:
        ImageError: the end marker is missing, and so are pixels.
    """
    if image.format != "JPEG" or not isinstance(image, JpegImagePlugin.JpegImageFile) or image.fp is None:
        return None
    first_scan = image.fp.tell()  # Pillow has read up to here
    if data.rfind(_JPEG_END, first_scan) >= 0:
        return None
    written = data.rstrip(b"\0\xff")
    written = data[: len(written) + 2].rstrip(b"\xff")  # a scan may itself end in up to two zeros
    # If pixels are missing, the decoder reads them from what follows: different data gives different pixels.
    sequel = b"".join(b"\xff" + bytes([restart, *b"\x55\xa9\x3c\x96\x1b" * 8]) for restart in range(0xD0, 0xD8))
    ended, components = written + _JPEG_END, [component for component, *_ in image.layer]
    if has_all_scans(written, first_scan, components) and same_pixels(ended, written + sequel[2:] + _JPEG_END):
        return ended
    raise ImageError(name, "truncated", "the image is truncated: it has no end marker")


# Pixels


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata must not cost the image, and Pillow raises many kinds
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey_to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image
    if image.mode == "La":  # Pillow cannot convert this mode to RGBA directly
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(rgba, mask=rgba)
    return canvas


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit integers by their full range, floats from 0..1 or 0..255, other values by their own range."""
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
