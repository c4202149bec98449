"""Every kind of file that a folder of photos holds: read as a viewer shows it, or refused by name."""

import io
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from captioner.data import images
from captioner.data.images import ImageError, load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Blue, with a red top left quarter: any turn or flip shows."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    return image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def near(image: Image.Image, expected: Image.Image, tolerance: float = 4) -> bool:
    """Same size, and nearly the same in the mean: lossy formats smear edges."""
    if image.mode != "RGB" or image.size != expected.size:
        return False
    difference = np.abs(np.asarray(image, np.float32) - np.asarray(expected, np.float32))
    return float(difference.mean()) < tolerance


def pixels(image: Image.Image) -> list[tuple[int, int, int]]:
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def refusal(source: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    return caught.value


FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"] + ["AVIF"] * (
    ".avif" in Image.registered_extensions()
)


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_read_whole_and_refused_when_cut(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    photo = Image.fromarray(noise).resize((192, 128), Image.Resampling.BICUBIC)
    data = encoded(photo, format)
    assert near(load_image(data), photo, tolerance=12)  # GIF has 256 colours
    for share in (0.05, 0.5, 0.9):
        error = refusal(data[: int(len(data) * share)])
        assert error.reason in ("truncated", "damaged", "unsupported"), (share, error)


def test_a_jpeg_cut_short_is_called_truncated_wherever_the_cut_is() -> None:
    data = encoded(picture(200, 150), "JPEG", progressive=True)
    assert {refusal(data[:-cut]).reason for cut in (2, 10, 100, len(data) // 4)} == {"truncated"}


def test_a_jpeg_whose_second_half_is_zeros_is_truncated() -> None:
    noise = Image.effect_noise((200, 150), 80)
    data = encoded(noise, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0" + b"a thumbnail has an end marker too: \xff\xd9")
    preallocated = data[: len(data) // 2] + bytes(10 * len(data))
    Image.open(io.BytesIO(preallocated)).load()  # Pillow sees nothing wrong
    assert refusal(preallocated).reason == "truncated"
    assert load_image(data + b"a trailer, as some telephones write" + bytes(10 * len(data))).size == (200, 150)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, format: str) -> None:
    stored = {  # how a camera stores the upright picture under each tag: the inverse of the viewer's turn
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.rotate(-90, expand=True),
    }[orientation](picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encoded(stored, format, exif=exif))
    assert near(upright, picture())
    assert load_image(upright).tobytes() == upright.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_costs_the_orientation_not_the_picture() -> None:
    assert near(load_image(encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0")), picture())


def test_cmyk_jpeg_keeps_its_colours() -> None:
    inverted_as_adobe_does = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in inverted_as_adobe_does
    assert near(load_image(inverted_as_adobe_does), picture())
    assert near(load_image(encoded(picture().convert("CMYK"), "TIFF")), picture())


def test_transparency_shows_white() -> None:
    rgba = Image.new("RGBA", (3, 1))
    for x, colour in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)]):
        rgba.putpixel((x, 0), colour)
    expected = [RED, WHITE, (127, 127, 127)]
    assert pixels(load_image(encoded(rgba, "PNG"))) == expected
    assert pixels(load_image(rgba.convert("RGBa"))) == expected  # premultiplied
    assert pixels(load_image(encoded(rgba, "WEBP", lossless=True))) == expected

    grey = Image.new("LA", (2, 1))
    grey.putdata([(100, 255), (100, 0)])
    assert pixels(load_image(encoded(grey, "PNG"))) == [(100, 100, 100), WHITE]

    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette.putdata([0, 1, 2])
    assert pixels(load_image(encoded(palette, "PNG"))) == [RED, GREEN, BLUE]
    assert pixels(load_image(encoded(palette, "PNG", transparency=1))) == [RED, WHITE, BLUE]
    assert pixels(load_image(encoded(palette, "PNG", transparency=b"\xff\x00\xff"))) == [RED, WHITE, BLUE]
    assert pixels(load_image(encoded(palette, "GIF", transparency=1))) == [RED, WHITE, BLUE]

    marked = chunk(b"tRNS", struct.pack(">3H", *RED))
    assert pixels(load_image(png(2, 1, 8, 2, bytes([0, *RED, *GREEN]), marked))) == [WHITE, GREEN]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = struct.pack(">4H", 0, 0x1234, 0x8080, 0xFFFF)
    grey = [(v, v, v) for v in (0, 18, 128, 255)]
    assert pixels(load_image(png(4, 1, 16, 0, b"\0" + levels))) == grey
    transparent = chunk(b"tRNS", struct.pack(">H", 0x1234))
    assert pixels(load_image(png(4, 1, 16, 0, b"\0" + levels, transparent))) == [grey[0], WHITE, grey[2], grey[3]]
    for array in (np.frombuffer(levels, ">u2").astype("<u2"), np.frombuffer(levels, ">u2").astype("<i4")):
        assert pixels(load_image(encoded(Image.fromarray(array.reshape(1, 4)), "TIFF"))) == grey
    colour = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0xFFFF, 0, 0, 0, 0x8080, 0xFFFF))
    assert pixels(load_image(colour)) == [RED, (0, 128, 255)]
    assert pixels(load_image(png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 0xFFFF, 0, 0, 0)))) == [WHITE]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1000.0, 0.0, 1000.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([7.0e9, 7.0e9, 7.0e9], [0, 0, 0]),
    ],
)
def test_floats_are_scaled_by_what_they_hold(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert [pixel[0] for pixel in pixels(load_image(encoded(image, "TIFF")))] == expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "I", "F", "LA", "PA", "RGBA", "RGBX", "La"])
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    image = Image.new("LA", (2, 2), (0, 255)).convert("La") if mode == "La" else Image.new(mode, (2, 2))
    before = (image.mode, image.tobytes())
    assert load_image(image).mode == "RGB"
    assert (image.mode, image.tobytes()) == before


def test_lab_becomes_rgb() -> None:
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = ImageCms.applyTransform(picture(), lab)
    assert image is not None and near(load_image(image), picture(), tolerance=12)  # our blue is outside its gamut


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(format: str) -> None:
    other = [Image.new("RGB", (48, 32), GREEN)] * 2
    data = encoded(picture(), format, save_all=True, append_images=other)
    assert near(load_image(data), picture())


def test_files_that_are_no_image(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not a photo at all, but a long enough text\n" * 20)
    assert refusal(text).reason == "not_an_image"
    empty = tmp_path / "empty.png"
    empty.touch()
    assert refusal(empty).reason == "empty"
    assert refusal(b"").reason == "empty"
    assert refusal(Image.new("RGB", (0, 5))).reason == "empty"
    assert refusal(tmp_path / "none.jpg").reason == "missing"
    assert refusal(text / "below.jpg").reason == "missing"
    assert refusal("nul\0byte.jpg").reason == "missing"
    assert refusal(tmp_path).reason == "not_a_file"
    assert refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").reason == "unsupported"
    assert str(refusal(text)) == f"{text}: {refusal(text).message}"


def test_postscript_is_never_run() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    assert refusal(postscript).reason == "not_an_image"


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(30_000, 30_000, 8, 2, b"")  # no pixels follow: decoding would say truncated
    assert refusal(bomb).reason == "too_large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # other code's setting does not lift our limit
    assert refusal(bomb).reason == "too_large"
    monkeypatch.setattr(images, "MAX_PIXELS", 48 * 32 - 1)
    assert refusal(picture()).reason == "too_large"


def test_files_beyond_the_byte_limit_are_not_read(tmp_path: Path) -> None:
    sparse = tmp_path / "huge.bmp"
    with open(sparse, "wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert refusal(sparse).reason == "too_large"


def test_min_size_shrinks_jpegs_but_never_below() -> None:
    data = encoded(picture(1600, 1200), "JPEG")
    assert load_image(data, min_size=300).size == (400, 300)
    assert load_image(data, min_size=301).size == (800, 600)
    assert load_image(data, min_size=5000).size == (1600, 1200)
    assert near(load_image(data, min_size=150), picture(200, 150))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture(1600, 1200), "JPEG", exif=exif)
    assert load_image(turned, min_size=300).size == (300, 400)
    assert load_image(turned, min_size=300).info["size"] == load_image(turned).size == (1200, 1600)
    assert load_image(encoded(picture(1600, 1200), "PNG"), min_size=300).size == (1600, 1200)


def test_sources_are_interchangeable_and_threads_agree(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(picture(), "JPEG"))
    with open(path, "rb") as file:
        same = [load_image(source) for source in (path, str(path), path.read_bytes(), Image.open(path), file)]
    assert len({image.tobytes() for image in same}) == 1
    with ThreadPoolExecutor(8) as pool:
        assert {image.tobytes() for image in pool.map(load_image, [path] * 64)} == {same[0].tobytes()}


def test_errors_cross_process_boundaries() -> None:
    error = pickle.loads(pickle.dumps(refusal(b"")))
    assert (error.source, error.reason, str(error)) == (refusal(b"").source, "empty", str(refusal(b"")))
