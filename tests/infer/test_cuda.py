"""What only a GPU shows of captioning: captured steps, copies in their own stream, bfloat16, memory that runs out."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutput

from captioner.decoding import cuda_graph, stream
from captioner.decoding.cuda_graph import Captures
from captioner.decoding.options import GenerationOptions
from captioner.decoding.step_decoder import StepDecoder
from captioner.decoding.stream import GenerationStream, generate
from captioner.infer.captioner import Captioner
from captioner.infer.torch_backend import CudaCopies, TorchBackend
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")

SEARCHES = {
    "greedy": GenerationOptions(num_beams=1),
    "greedy, constrained": GenerationOptions(num_beams=1, min_new_tokens=5, no_repeat_ngram_size=2),
    "beams": GenerationOptions(num_beams=4, num_return_sequences=3, no_repeat_ngram_size=2, length_penalty=0.5),
    "beams, prefix and banned words": GenerationOptions(num_beams=3, prefix_ids=(5, 9), bad_words_ids=((5,), (7, 8))),
    "seeded draws": GenerationOptions(do_sample=True, top_k=9, top_p=0.9, num_return_sequences=3, seed=5),
    "diverse beams": GenerationOptions(num_beams=4, num_beam_groups=2, diversity_penalty=0.5, num_return_sequences=4),
    "forced words": GenerationOptions(num_beams=4, force_words_ids=((5, 9),), num_return_sequences=2),
}
DRAWS = GenerationOptions(do_sample=True, temperature=1.3, top_k=9, top_p=0.9, num_return_sequences=3)


@pytest.fixture(scope="module")
def on_cuda(tiny_captioner: Path) -> CaptionerForConditionalGeneration:
    return CaptionerForConditionalGeneration.from_pretrained(tiny_captioner).eval().to(DEVICE)


@pytest.fixture(scope="module")
def features(on_cuda: CaptionerForConditionalGeneration) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return 2 * torch.randn(43, 16, on_cuda.config.hidden_size, generator=generator).to(DEVICE)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was captured, one item a graph."""
    found: list[object] = []
    capture = cuda_graph.capture

    def noted(work: Callable[[], object], device: torch.device) -> object:
        found.append(capture(work, device))
        return found[-1]

    monkeypatch.setattr(cuda_graph, "capture", noted)
    return found


@pytest.fixture
def limited_memory() -> Iterator[None]:
    """256 MiB more than there is in use."""
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + (256 << 20)
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(DEVICE).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def captions(
    model: CaptionerForConditionalGeneration,
    features: torch.Tensor,
    options: GenerationOptions,
    captures: Captures | None = None,
) -> list:
    stream = GenerationStream(model, options, captures=captures)
    groups = [group for batch in features.split(5) for group in stream.add(batch)] + stream.finish()
    return [[(one.token_ids, one.end_log_prob is None) for one in group] for group in groups]


@pytest.mark.parametrize("name", SEARCHES)
def test_captured_work_writes_what_work_writes_that_is_not(
    on_cuda: CaptionerForConditionalGeneration, features: torch.Tensor, name: str, graphs: list[object],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """In streams of different lengths, the last of them with a smaller batch at its end, and other options between."""
    captures = Captures()
    for count in (11, 25, 43):
        found = captions(on_cuda, features[-count:], SEARCHES[name], captures)
        assert found == captions(on_cuda, features[-count:], SEARCHES[name])
        captions(on_cuda, features[:5], GenerationOptions(num_beams=2, max_new_tokens=7), captures)
    assert len(graphs) == 4 and caplog.messages == []  # the first tokens and a step, of either options
    assert len({group[0] for group in found}) > 5, "the images make too little difference"


def test_captured_draws_differ_from_one_another_and_repeat_with_torchs_seed(
    on_cuda: CaptionerForConditionalGeneration, features: torch.Tensor, graphs: list[object],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    captures = Captures()
    torch.manual_seed(3)
    first, second = (captions(on_cuda, features, DRAWS, captures) for _ in range(2))
    torch.manual_seed(3)
    assert captions(on_cuda, features, DRAWS, captures) == first != second
    assert len(graphs) == 1 and caplog.messages == []
    assert sum(len(set(group)) > 1 for group in first) > len(first) / 2


def test_a_captioner_writes_the_same_from_captured_work(tiny_captioner: Path, graphs: list[object]) -> None:
    draw = np.random.default_rng(1)
    photos = [Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(43)]
    captioner = Captioner.from_pretrained(tiny_captioner, device=DEVICE, dtype="fp32")
    backend = captioner.backend
    assert isinstance(backend, TorchBackend) and backend.captures is not None
    found = [[one.text for one in captioner(photos, batch_size=8)] for _ in range(3)]
    assert len(graphs) == 3  # a batch of three comes more than once, too
    backend.captures = None
    assert found == 3 * [[one.text for one in captioner(photos, batch_size=8)]]


@pytest.mark.parametrize("name", ["greedy", "beams", "seeded draws"])
def test_a_gpu_writes_what_a_processor_writes(
    on_cuda: CaptionerForConditionalGeneration, features: torch.Tensor, tiny_captioner: Path, name: str
) -> None:
    model = CaptionerForConditionalGeneration.from_pretrained(tiny_captioner).eval()
    expected, found = captions(model, features.cpu(), SEARCHES[name]), captions(on_cuda, features, SEARCHES[name])
    assert sum(one == other for one, other in zip(expected, found, strict=True)) >= 42  # a tie may fall either way


def test_in_bfloat16_most_captions_are_those_of_float32(tiny_captioner: Path) -> None:
    draw = np.random.default_rng(1)
    photos = [Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(64)]
    texts = {}
    for precision in ("fp32", "bf16"):
        captioner = Captioner.from_pretrained(tiny_captioner, device=DEVICE, dtype=precision)
        texts[precision] = [caption.text for caption in captioner(photos, batch_size=16, num_beams=1)]
    assert len(set(texts["fp32"])) > 5
    assert sum(one == other for one, other in zip(*texts.values(), strict=True)) > 40
    assert Captioner.from_pretrained(tiny_captioner).precision == "bf16"


def test_batches_arrive_whole_while_the_device_is_busy() -> None:
    copies, work = CudaCopies(DEVICE, torch.float32), torch.randn(2048, 2048, device=DEVICE)
    draw = torch.Generator().manual_seed(0)
    batches = [torch.rand(1 << 20, generator=draw) for _ in range(20)]
    sums = []
    assert copies.take() is None
    for number, batch in enumerate(batches):
        given = batch.clone()
        copies.send(given)
        given.zero_()  # whoever sends may go on with the memory
        for _ in range(5):
            work = (work @ work).clamp(-1, 1)
        taken = copies.take()
        assert taken is not None and taken.device.type == "cuda"
        sums.append((number, taken.double().sum()))
    for number, total in sums:
        assert total.item() == pytest.approx(batches[number].double().sum().item(), rel=1e-12)


def test_a_batch_size_is_found_and_memory_that_runs_out_ends_the_search(
    tiny_captioner: Path, limited_memory: None
) -> None:
    captioner = Captioner.from_pretrained(tiny_captioner, device=DEVICE)
    options = GenerationOptions(num_beams=2, max_new_tokens=4)
    captioner.tune(options, batch_size=7)
    assert captioner.batch_size == 7
    captioner.backend.batch_size = 2048
    captioner.tune(options)
    assert captioner.batch_size < 32 * 2048, "65,536 images of 32 x 32 pixels do not go into 256 MiB"
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 28, device=DEVICE)
    assert captioner(Image.new("RGB", (40, 40))).text


def test_steps_wait_for_the_device_only_to_see_which_images_are_done(
    on_cuda: CaptionerForConditionalGeneration, features: torch.Tensor
) -> None:
    """One look each `CHECK_EVERY` steps, and one for what was written."""
    options = GenerationOptions(num_beams=4, min_new_tokens=16)
    generate(on_cuda, {"encoder_outputs": BaseModelOutput(features)}, options)
    with pytest.warns(UserWarning, match="called a synchronizing") as found:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            generate(on_cuda, {"encoder_outputs": BaseModelOutput(features)}, options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = {f"{Path(warning.filename).name}:{warning.lineno}" for warning in found}
    assert len(lines) > 0 and len(found) <= 1 + 16 // stream.CHECK_EVERY + 12, lines


def test_encoder_and_decoder_step_compile(on_cuda: CaptionerForConditionalGeneration, features: torch.Tensor) -> None:
    pixels = torch.randn(4, 3, 32, 32, device=DEVICE)
    with torch.no_grad():
        expected = on_cuda.encoder(pixel_values=pixels).last_hidden_state
        found = torch.compile(on_cuda.encoder)(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)

        tokens, parents = torch.full((5, 2), 7, device=DEVICE), torch.arange(2, device=DEVICE).repeat(5, 1)
        logits = []
        for compiled in (False, True):
            decoder = StepDecoder(on_cuda, features[:5], 2, longest=8)
            decoder.start(torch.tensor([on_cuda.config.decoder_start_token_id], device=DEVICE))
            step = torch.compile(decoder.step) if compiled else decoder.step
            logits.append(torch.stack([step(tokens, parents, 8) for _ in range(3)]))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=1e-3)
