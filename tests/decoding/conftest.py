"""The tiny captioner's model, for tests that decode with it."""

from pathlib import Path

import pytest

from captioner.model.modeling_captioner import CaptionerForConditionalGeneration


@pytest.fixture(scope="module")
def model(tiny_captioner: Path) -> CaptionerForConditionalGeneration:
    return CaptionerForConditionalGeneration.from_pretrained(tiny_captioner).eval()
