"""Arrays and tensors show the picture that their shape, type and range say, or are refused by name."""

from typing import Any

import numpy as np
import pytest
import torch

from captioner.data.images import ImageError, load_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def same(source: Any, expected: np.ndarray = RGB) -> bool:
    return np.array_equal(np.asarray(load_image(source)), expected)


@pytest.mark.parametrize(
    "source",
    [
        RGB,
        RGB[::-1, ::-1][::-1, ::-1],
        np.asfortranarray(RGB),
        RGB.transpose(2, 0, 1),
        RGB.astype(np.int64),
        RGB / 255,
        (RGB / 255).astype(np.float32),
        torch.tensor(RGB).permute(2, 0, 1),
        torch.tensor(RGB),
        torch.tensor(RGB).permute(2, 0, 1) / 255,
        (torch.tensor(RGB).permute(2, 0, 1) / 255).requires_grad_(),
        np.dstack([RGB, np.full((6, 5), 255, np.uint8)]),
    ],
)
def test_layouts_and_types_of_one_picture(source: Any) -> None:
    assert same(source)


def test_grey_and_low_precision() -> None:
    grey = np.repeat(RGB[..., :1], 3, axis=2)
    for source in (RGB[..., 0], RGB[..., :1], RGB[None, ..., 0], torch.tensor(RGB[..., 0])[None], RGB[..., 0] / 255):
        assert same(source, grey)
    assert same(RGB[..., 0].astype(np.uint16) * 257, grey)
    assert same(RGB[..., 0] > 99, np.repeat(RGB[..., :1] > 99, 3, axis=2) * 255)
    half = torch.tensor(RGB).permute(2, 0, 1) / 255
    for dtype, tolerance in ((torch.float16, 1), (torch.bfloat16, 2)):
        difference = np.asarray(load_image(half.to(dtype))).astype(int) - RGB
        assert abs(difference).max() <= tolerance


def test_a_shape_of_two_readings_goes_by_the_habit_of_its_library() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 7, 3), np.uint8)
    assert same(pixels, pixels)
    assert same(torch.tensor(pixels), pixels.transpose(1, 2, 0))


def test_transparency_shows_white() -> None:
    assert same(np.zeros((2, 2, 4), np.uint8), np.full((2, 2, 3), 255))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 5, 7)), r"an array of shape \(2, 5, 7\) is not an image: \[H, W\], \[H, W, 3\] or \[3, H, W\]"),
        (np.zeros((1, 3, 8, 8)), r"an array of shape \(1, 3, 8, 8\) is not an image"),
        (np.array(3), r"an array of shape \(\) is not an image"),
        (np.zeros((0, 4, 3), np.uint8), r"has no pixels"),
        (RGB.astype(np.float32), r"floats must be from 0 to 1; these go from"),
        (torch.randn(3, 8, 8), r"floats must be from 0 to 1; these go from -"),
        (np.full((4, 4, 3), np.nan), r"floats must be from 0 to 1; these go from nan"),
        (RGB.astype(np.int32) * 2, r"integers must be from 0 to 255; these go from"),
        (RGB.astype(np.complex64), "type complex64 is not an image"),
        (np.full((2, 2), "a.jpg"), "is not an image"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(source)
    assert caught.value.source == f"array of shape {tuple(source.shape)}"
