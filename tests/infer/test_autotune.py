from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from captioner.decoding.options import GenerationOptions
from captioner.infer import autotune, torch_backend
from captioner.infer.backend import Backend
from captioner.infer.captioner import Captioner


@pytest.fixture
def cap(tiny_captioner: Path) -> Captioner:
    return Captioner.from_pretrained(tiny_captioner, device="cpu")


def speeds_by(monkeypatch: pytest.MonkeyPatch, speed: Callable[[Backend, int], float]) -> list[int]:
    """Let probes find these; gives the batch sizes probed."""
    probed: list[int] = []

    def images_per_second(backend: Backend, options: GenerationOptions, batch_size: int, tokens: int) -> float:
        probed.append(batch_size)
        return speed(backend, batch_size)

    monkeypatch.setattr(autotune, "images_per_second", images_per_second)
    monkeypatch.setattr(torch_backend, "multiplies_bf16", lambda: True)
    return probed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 1, "max_new_tokens": 5},
        {"prefix_ids": (4, 5), "force_words_ids": ((6,) * 13,), "bad_words_ids": ((7,),)},
        {"do_sample": True, "seed": 1, "top_k": 5},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "no_repeat_ngram_size": 3},
    ],
)
def test_speed_is_measured_whatever_the_options(cap: Captioner, options: dict) -> None:
    assert autotune.images_per_second(cap.backend, GenerationOptions(**options), batch_size=2, num_tokens=40) > 0


@pytest.mark.parametrize(("speed", "expected"), [(1.1, "fp32"), (1.3, "bf16")])
def test_bf16_is_taken_where_it_is_clearly_faster(
    cap: Captioner, monkeypatch: pytest.MonkeyPatch, speed: float, expected: str
) -> None:
    probed = speeds_by(monkeypatch, lambda backend, size: speed if backend.precision == "bf16" else 1.0)
    cap.tune(GenerationOptions())
    assert cap.precision == expected and len(probed) == 2
    assert {parameter.dtype for parameter in cap.backend.model.parameters()} == {cap.backend.dtype}
    assert cap(Image.new("RGB", (40, 40))).text
    cap.tune(GenerationOptions())
    assert len(probed) == 2, "what is chosen stays"


def test_a_precision_that_was_asked_for_stays(
    tiny_captioner: Path, cap: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = speeds_by(monkeypatch, lambda backend, size: 2.0 if backend.precision == "bf16" else 1.0)
    plain = Captioner.from_pretrained(tiny_captioner, device="cpu", dtype="fp32")
    plain.tune(GenerationOptions())
    monkeypatch.setenv("WORLD_SIZE", "2")
    cap.tune(GenerationOptions())
    assert plain.precision == cap.precision == "fp32" and probed == [], "nor do several processes choose, each its own"


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [({16: 10, 32: 19, 64: 30, 128: 31}, 64), ({16: 10, 32: 10}, 16), ({16: 10, 32: 19}, 32), (None, 512)],
)
def test_batches_on_an_accelerator_grow_while_that_pays_and_memory_suffices(
    cap: Captioner, monkeypatch: pytest.MonkeyPatch, speeds: dict[int, float] | None, expected: int
) -> None:
    def speed(backend: Backend, size: int) -> float:
        if speeds is not None and size not in speeds:
            raise torch.OutOfMemoryError
        return size if speeds is None else speeds[size]

    probed = speeds_by(monkeypatch, speed)
    monkeypatch.setattr(cap.backend, "device", torch.device("cuda"))
    cap.tune(GenerationOptions(), batch_size=7)
    assert cap.batch_size == 7 and probed == []
    cap.backend.batch_size = 16
    cap.tune(GenerationOptions())
    assert cap.batch_size == expected
