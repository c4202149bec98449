"""Every kind of file that a folder of photos holds: read as a viewer shows it, or refused by name."""

import io
import pickle
import re
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

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
    noise = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    photo = Image.fromarray(noise).resize((200, 150), Image.Resampling.BICUBIC)
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}):
        data = encoded(photo, "JPEG", **options)
        for cut in (50, 100, len(data) // 4, len(data) // 2):
            for tail in (b"", bytes(5000), b"\xff" * 5000):  # the file's space was reserved, and not filled
                assert refusal(data[:-cut] + tail).reason == "truncated", (options, cut, tail[:1])
    data = encoded(photo, "JPEG", progressive=True)
    later_scans = [match.start() for match in re.finditer(rb"\xff\xda", data)][1:]
    assert later_scans and {refusal(data[:start]).reason for start in later_scans} == {"truncated"}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_read_whole_with_a_warning(options: dict[str, object]) -> None:
    data = encoded(Image.effect_noise((200, 150), 80), "JPEG", **options)
    whole = load_image(data)
    assert "warning" not in whole.info
    for ended in (data[:-2], data[:-1], data[:-2] + bytes(5000), data[:-2] + b"\xff" * 5000):
        image = load_image(ended)
        assert image.tobytes() == whole.tobytes()
        assert "the JPEG has no end marker, but the picture is whole" in image.info["warning"]
    assert load_image(data[:-2], min_size=50).size == (50, 38) or load_image(data[:-2], min_size=50).size == (100, 75)


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


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "ballast",
    [
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iCCP", b"profile\0\0not a zlib stream"),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2**21)),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 2**21)),
        chunk(b"tEXt", b"Comment\0" + b"x" * 1000)[:-4] + b"\0\0\0\0",  # of another checksum
    ],
)
def test_a_png_is_read_whatever_its_profile_and_texts_are(ballast: bytes, after: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(picture().rotate(180), "PNG", exif=exif)
    place = data.index(b"IEND" if after else b"IDAT") - 4
    assert load_image(data[:place] + ballast + data[place:]).tobytes() == picture().tobytes()


def test_a_png_whose_pixels_are_damaged_stays_damaged() -> None:
    data = bytearray(encoded(Image.effect_noise((64, 64), 80), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 0xFF
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**21)))
    place = data.index(b"IDAT") - 4
    assert refusal(bytes(data[:place] + profile + data[place:])).reason == "damaged"


def tiff(bits: int, samples: int, sample_format: int = 1, compression: int = 1, photometric: int = 1) -> bytes:
    """8 x 8 zeros."""
    pixels = bytes(64 * samples * bits // 8)
    tags = {256: 8, 257: 8, 258: bits, 259: compression, 262: photometric, 273: 0, 277: samples, 278: 8}
    tags |= {279: len(pixels), 339: sample_format}
    if samples > 1:  # an array of them lies behind the tags
        tags |= {258: 8 + 2 + 12 * len(tags) + 4, 339: 8 + 2 + 12 * len(tags) + 4 + 2 * samples}
    tags[273] = 8 + 2 + 12 * len(tags) + 4 + 4 * samples
    entries = b"".join(struct.pack("<HHII", tag, *_typed(tag, samples), value) for tag, value in sorted(tags.items()))
    arrays = struct.pack(f"<{samples}H", *[bits] * samples) + struct.pack(f"<{samples}H", *[sample_format] * samples)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + arrays + pixels


def _typed(tag: int, samples: int) -> tuple[int, int]:
    if tag in (258, 339):
        return 3, samples
    return (4 if tag in (256, 257, 273, 278, 279) else 3), 1


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        ({"bits": 64, "samples": 1, "sample_format": 3}, "1 float channels of 64 bits"),
        ({"bits": 16, "samples": 1, "sample_format": 3}, "1 float channels of 16 bits"),
        ({"bits": 32, "samples": 3, "sample_format": 3, "photometric": 2}, "3 float channels of 32 bits"),
        ({"bits": 8, "samples": 5}, "5 channels of 8 bits"),
        ({"bits": 8, "samples": 5, "photometric": 5}, "5 channels of 8 bits"),
        ({"bits": 64, "samples": 1, "sample_format": 6}, "1 complex channels of 64 bits"),
        ({"bits": 8, "samples": 3, "compression": 34712, "photometric": 2}, "compression 34712"),
        ({"bits": 8, "samples": 3, "compression": 34887, "photometric": 2}, "compression 34887"),
        ({"bits": 8, "samples": 3, "compression": 50001, "photometric": 2}, "compression webp"),
        ({"bits": 8, "samples": 3, "compression": 65000, "photometric": 2}, "compression 65000"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tiff_of_a_kind_we_cannot_read_is_unsupported_not_damaged(layout: dict[str, int], named: str) -> None:
    error = refusal(tiff(**layout))
    assert error.reason == "unsupported" and named in error.message and "not supported" in error.message
    assert refusal(tiff(**layout)[:100]).reason in ("damaged", "truncated")


def test_the_usual_tiffs_are_read() -> None:
    for layout in ({"bits": 8, "samples": 3, "photometric": 2}, {"bits": 8, "samples": 4, "photometric": 5}):
        assert load_image(tiff(**layout)).size == (8, 8)
    assert refusal(tiff(8, 3, photometric=2)[:-60]).reason == "truncated"


def test_unsupported_kinds_of_other_formats_are_not_called_damaged() -> None:
    bitmap = bytearray(encoded(picture(), "BMP"))
    bitmap[30:34] = struct.pack("<I", 9)
    assert refusal(bytes(bitmap)).reason == "unsupported"
    jpeg = bytearray(encoded(picture(), "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 4] = 12
    assert (refusal(bytes(jpeg)).reason, "12-bit" in refusal(bytes(jpeg)).message) == ("unsupported", True)


@pytest.mark.parametrize("url", ["https://example.org/a.jpg", "s3://bucket/a.jpg", "file:///a.jpg", "data:image/png,x"])
def test_a_url_is_not_fetched_and_is_told_so(url: str) -> None:
    error = refusal(url)
    assert (error.reason, error.message) == ("missing", "is a URL, and URLs are not fetched: download the image first")


def test_what_is_no_image_is_named_by_its_type(tmp_path: Path) -> None:
    for source, kind in ((None, "NoneType"), (7, "int"), (["a.jpg"], "list"), ({"a": 1}, "dict")):
        assert refusal(source).message.startswith(f"{kind} is not an image: give a path, bytes, an open file")
    (tmp_path / "photo.png").write_bytes(encoded(picture(), "PNG"))
    with open(tmp_path / "photo.png") as text:
        assert refusal(text).message == "the file is open as text: open it with mode 'rb'"
        assert refusal(text).source == str(tmp_path / "photo.png")
    with open(tmp_path / "photo.png", "rb") as file:
        file.read()
        assert near(load_image(file), picture()), "read from its start, as Pillow does"
    assert "closed file" in refusal(file).message
    assert refusal(SimpleNamespace(read=lambda: "text")).message == "its read() gives str, not bytes"


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_picture_that_lacks_only_the_mark_of_its_end_is_whole(format: str) -> None:
    data = encoded(picture(), format)
    unended = data[: -{"PNG": 12, "GIF": 1}[format]]
    assert load_image(unended).tobytes() == load_image(data).tobytes()


def test_heic_is_read_with_its_plug_in_and_named_in_the_error_without(tmp_path: Path, monkeypatch) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 40))).save(tmp_path / "a.heic")
    image = load_image(tmp_path / "a.heic")
    assert image.size == (64, 48) and np.abs(np.asarray(image).mean((0, 1)) - (200, 30, 40)).max() < 4
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._load_plugin.cache_clear()
    assert "pip install 'captioner[heif]'" in refusal(tmp_path / "a.heic").message
    images._load_plugin.cache_clear()


def test_jpeg_xl_names_its_plug_in(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    images._load_plugin.cache_clear()
    for start in (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"):
        assert "pip install pillow-jxl-plugin" in refusal(start + bytes(40)).message
    images._load_plugin.cache_clear()
