"""What part of a photo the model sees, and in which numbers."""

import numpy as np
import pytest
from PIL import Image

from captioner.model.preprocessing import Preprocessing


def columns_and_rows(width: int, height: int) -> Image.Image:
    """Red is the column's number, green the row's."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "crop_pct", "columns", "rows"),
    [
        ((8, 4), 1.0, [2, 3, 4, 5], [0, 1, 2, 3]),
        ((4, 8), 1.0, [0, 1, 2, 3], [2, 3, 4, 5]),
        ((16, 8), 0.5, [6, 7, 8, 9], [2, 3, 4, 5]),
        ((4, 4), 0.5, [1, 1, 2, 2], [1, 1, 2, 2]),
    ],
)
def test_crop_keeps_the_centre(size: tuple[int, int], crop_pct: float, columns: list[int], rows: list[int]) -> None:
    spec = Preprocessing(4, "crop", crop_pct, "nearest")
    seen = np.asarray(spec.resize(columns_and_rows(*size)))
    assert seen[0, :, 0].tolist() == columns
    assert seen[:, 0, 1].tolist() == rows


@pytest.mark.parametrize(
    ("size", "crop_pct", "columns", "rows"),
    [((8, 4), 1.0, [1, 3, 5, 7], [0, 1, 2, 3]), ((16, 8), 0.5, [5, 7, 9, 11], [2, 3, 4, 5])],
)
def test_squash_loses_proportions(size: tuple[int, int], crop_pct: float, columns: list[int], rows: list[int]) -> None:
    seen = np.asarray(Preprocessing(4, "squash", crop_pct, "nearest").resize(columns_and_rows(*size)))
    assert seen[0, :, 0].tolist() == columns
    assert seen[:, 0, 1].tolist() == rows


@pytest.mark.parametrize("upright", [False, True])
def test_pad_keeps_all_between_bars_of_the_mean_colour(upright: bool) -> None:
    spec = Preprocessing(8, "pad", interpolation="nearest", mean=(0.2, 0.4, 0.6), std=(0.1, 0.1, 0.1))
    image = columns_and_rows(4, 8) if upright else columns_and_rows(8, 4)
    expected = np.full((8, 8, 3), [51, 102, 153])
    expected[(slice(None), slice(2, 6)) if upright else (slice(2, 6), slice(None))] = np.asarray(image)
    assert np.array_equal(spec.resize(image), expected)


def test_pixels_are_scaled_and_normalised_by_channel() -> None:
    spec = Preprocessing(2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    pixels = spec(Image.new("RGB", (2, 2), (255, 0, 51)))
    assert pixels.dtype == np.float32 and pixels.shape == (3, 2, 2)
    np.testing.assert_allclose(pixels[:, 1, 1], [1.0, -1.0, 0.2], rtol=1e-6)


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (17, 33)])
def test_any_size_comes_out_square(mode: str, size: tuple[int, int]) -> None:
    assert Preprocessing(16, mode, 0.875)(Image.new("RGB", size, "red")).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("field", "value"), [("resize_mode", "stretch"), ("interpolation", "magic"), ("crop_pct", 0.0), ("crop_pct", 1.5)]
)
def test_a_wrong_spec_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} .*{value}"):
        Preprocessing(16, **{field: value})  # type: ignore[arg-type]
