"""The checkpoint that comes with the package: it is there, small, and as good as its card says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from torch.utils.data import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

import captioner.model.auto  # noqa: F401 - for the Auto classes
from captioner.annotate.calibrate import trust_of
from captioner.annotate.evaluate import caption_samples
from captioner.config import SourceConfig
from captioner.data.images import load_image
from captioner.data.sources import load_samples
from captioner.decoding.options import GenerationOptions
from captioner.hub.find import BUNDLED
from captioner.infer.captioner import Captioner
from captioner.infer.export_format import GRAPHS, find_graphs
from captioner.metrics.score import score_captions
from captioner.metrics.trust import Trust

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def test_it_is_half_precision_and_below_60_megabytes() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 60e6
    with safe_open(BUNDLED / "model.safetensors", "pt") as weights:
        types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert types == {"F16", "I64"}  # integers: how many batches the norms of the CNN have seen


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="installed without the repository")
def test_it_says_something_different_of_every_example_photo() -> None:
    captioner = Captioner.from_pretrained()
    photos = sorted(PHOTOS.glob("*.jpg"))
    captions = [caption.text for caption in captioner(photos)]
    assert len(photos) >= 4 and len(set(captions)) == len(photos)
    assert all(len(caption.split()) >= 5 for caption in captions)


def test_its_graphs_are_of_its_weights_and_small() -> None:
    graphs = find_graphs(BUNDLED)
    assert graphs is not None and graphs.precision == "fp32" and not graphs.are_stale
    assert sum((BUNDLED / name).stat().st_size for name in GRAPHS) < 3e6


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="installed without the repository")
def test_its_graphs_say_what_torch_says() -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))
    by_graphs, by_torch = (Captioner.from_pretrained(backend=backend, device="cpu") for backend in ("onnx", "torch"))
    for options in ({"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}):
        for one, other in zip(by_graphs(photos, **options), by_torch(photos, **options), strict=True):
            assert [token.text for token in one.tokens] == [token.text for token in other.tokens]
            assert one.confidence == pytest.approx(other.confidence, rel=1e-4)


ON_A_CPU = """
import sys
from captioner.cli import main

try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert not {"torch", "transformers", "timm"} & sys.modules.keys(), sorted(sys.modules)
"""


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="installed without the repository")
@pytest.mark.parametrize(
    "command",
    ["annotate PHOTOS", "annotate PHOTOS -o album.captions", "evaluate --data captions.csv --metrics CIDEr"],
)
def test_on_a_cpu_it_is_computed_without_torch_even_if_that_is_installed(tmp_path: Path, command: str) -> None:
    rows = [f"{photo},a photo of something" for photo in sorted(PHOTOS.glob("*.jpg"))[:2]]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    arguments = [*command.replace("PHOTOS", str(PHOTOS)).split(), "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", ON_A_CPU, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="installed without the repository")
def test_auto_classes_load_it_with_no_arguments_and_generate_what_captioner_says() -> None:
    """Its weights stay in half precision there, while the processor gives pixels in single precision."""
    model, processor = AutoModelForImageTextToText.from_pretrained(BUNDLED), AutoProcessor.from_pretrained(BUNDLED)
    assert model.dtype == torch.float16
    photos = sorted(PHOTOS.glob("*.jpg"))
    inputs = processor(images=[load_image(photo) for photo in photos], return_tensors="pt")
    captions = processor.batch_decode(model.generate(**inputs, max_new_tokens=40), skip_special_tokens=True)
    assert captions == [caption.text for caption in Captioner.from_pretrained(device="cpu", dtype="fp16")(photos)]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="installed without the repository")
def test_transformers_trainer_fine_tunes_it_as_auto_classes_load_it(tmp_path: Path) -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(BUNDLED), AutoProcessor.from_pretrained(BUNDLED)
    pixel_values = processor(images=load_image(next(PHOTOS.glob("*.jpg"))), return_tensors="pt").pixel_values[0]
    labels = torch.tensor(processor.tokenizer("a dune in the desert").input_ids)

    class OnePhoto(Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"pixel_values": pixel_values, "labels": labels}

    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True)
    assert Trainer(model, arguments, train_dataset=OnePhoto()).train().training_loss < 20


def test_loading_it_in_python_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    Captioner.from_pretrained()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif("CAPTIONER_FLICKR8K" not in os.environ, reason="CAPTIONER_FLICKR8K names no folder of Flickr8k")
def test_its_cider_on_flickr8k_validation_is_what_the_card_says() -> None:
    source = SourceConfig(path=os.environ["CAPTIONER_FLICKR8K"] + "/dataset_flickr8k.json", split="val")
    samples, _ = load_samples(source)
    captioner = Captioner.from_pretrained()
    captions, _ = caption_samples(captioner, samples, GenerationOptions(num_beams=3), batch_size=50, num_workers=2)
    references = {sample.id: sample.captions for sample in samples}
    texts = {image: caption.text for image, caption in captions.items()}
    scores = score_captions(texts, references, metrics=["CIDEr"])
    everything = trust_of(captions, references, "ptb")
    trust = Trust(everything.confidence[1::2], everything.cider[1::2], everything.threshold)  # not fitted on these
    assert trust.ece <= 0.05 and trust.auroc >= 0.7 and trust.halves[0] > 1.3 * trust.halves[1]
    card = {
        result.metric_type: result.metric_value for result in ModelCard.load(BUNDLED / "README.md").data.eval_results
    }
    assert scores.corpus["CIDEr"] == pytest.approx(card["CIDEr"], abs=2e-3)
