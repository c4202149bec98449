import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn

from captioner.config import RunConfig, Stretch, load_config
from captioner.data.batches import Batch, collate
from captioner.data.dataset import CaptionDataset
from captioner.errors import CaptionerError
from captioner.hub.load import load_model
from captioner.infer.captioner import Captioner
from captioner.training.optimizer_step import StepNumbers
from captioner.training.trainer import Trainer, train

ROOT = Path(__file__).parents[2]
Recipe = Callable[..., RunConfig]


def losses(run: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


TRAIN = (str(ROOT / "train.py"), "--config", str(ROOT / "configs" / "tiny.yaml"))
# Without MPI `accelerate launch --cpu` starts one process whatever it is told.
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launch(*arguments: str | Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *map(str, arguments)]
    log = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


def overrides(data: Path, run: Path, *more: str) -> list[str]:
    paths = [f"data.train.path={data}", f"data.validation.path={data}", f"output_dir={run}"]
    return [*paths, "phases.0.epochs=2", "validation.max_images=8", "checkpoint_every_steps=2", *more]


def written(config: RunConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return path


def test_drawn_shapes_are_learnt_to_the_word(recipe: Recipe, draw_shapes: Callable[..., None], tmp_path: Path) -> None:
    draw_shapes(tmp_path / "shapes", images=4000)
    data = tmp_path / "shapes" / "captions.csv"
    tags = ("tags={source: captions, num_words: 8}", "phases.0.objectives={captioning: 1.0, tags: 3.0}")
    rates = "phases.0.learning_rates={trunk: 0.002, bridge: 0.002, decoder: 0.002, heads: 0.01}"
    often = ("phases.0.epochs=12", "optimization.batch_size=16", "checkpoint_every_steps=500")
    config = recipe(*often, "validation.max_images=50", *tags, rates, data=data)
    best = train(config)
    captioner = Captioner.from_pretrained(best)
    rows = [line.split(",") for line in data.read_text().splitlines()[1:]]
    held_back = [(str(data.parent / image), caption) for image, caption, split in rows if split == "val"][:400]
    captions = captioner([image for image, _ in held_back], batch_size=100, num_beams=1)
    exact = sum(found.text == caption for found, (_, caption) in zip(captions, held_back, strict=True))
    assert exact / len(held_back) > 0.95
    known = set(load_model(best, "best")[0].config.tags)
    tagged = sum(
        {tag.text for tag in found.tags} == set(caption.split()) & known
        for found, (_, caption) in zip(captions, held_back, strict=True)
    )
    assert len(known) == 8 and tagged / len(held_back) > 0.9


def test_a_killed_training_resumes_to_the_same_bits(shapes: Path, tmp_path: Path) -> None:
    random = ["model.dropout=0.1", "optimization.ema_decay=0.9", "phases.0.augmentation.crop_scale=[0.7, 1.0]"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = launch(*TRAIN, *overrides(shapes, whole, *random))
    second = launch(*TRAIN, *overrides(shapes, killed, *random))
    deadline = time.monotonic() + 120
    log = killed / "log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 3:  # past the checkpoint at step 2, mid-epoch
        assert time.monotonic() < deadline and second.poll() is None
        time.sleep(0.005)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert log.read_text().count("\n") < 10, "killed too late to test anything"
    finish(launch(*TRAIN, *overrides(shapes, killed, *random), "--resume"))
    finish(first)
    for folder in ("last", "best"):
        expected, found = (load_file(run / folder / "model.safetensors") for run in (whole, killed))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), folder
    assert losses(whole) == losses(killed)


def test_two_processes_learn_as_one_with_the_doubled_batch(recipe: Recipe, shapes: Path, tmp_path: Path) -> None:
    """With every objective there is, in two phases."""
    teacher, words = tmp_path / "teacher.safetensors", tmp_path / "words.txt"
    save_file(timm.create_model("test_efficientnet").state_dict(), teacher)
    words.write_text("a red square\n" * 50 + "a blue circle left of a green square\n" * 110)
    more = [
        "optimization.gradient_accumulation_steps=2",
        "tags={source: captions, num_words: 9}",
        f"teacher={{name: test_efficientnet, weights: {teacher}}}",
        f"data.text={words}",
        "phases=[{name: words, epochs: 1, objectives: {language_modeling: 1.0}, learning_rates: {decoder: 0.002}}, "
        "{name: joint, epochs: 1, learning_rates: {trunk: 0.002, bridge: 0.002, decoder: 0.002, heads: 0.002}, "
        "objectives: {captioning: 1.0, reward: 0.5, tags: 1.0, contrastive: 0.5, distillation: 0.1}}]",
    ]
    one, two = tmp_path / "run", tmp_path / "two"
    train(recipe(*more, "optimization.batch_size=16"))
    finish(launch(*TWO_PROCESSES, *TRAIN, *overrides(shapes, two, *more, "optimization.batch_size=8")))
    assert len(losses(one)) == 10
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert len(losses(one, "validation_loss")) == 2
    assert losses(two, "validation_loss") == pytest.approx(losses(one, "validation_loss"), abs=1e-4)


EVERYTHING = (
    "phases=[{name: words, epochs: 1, objectives: {language_modeling: 1.0}, learning_rates: {decoder: 0.002}}, "
    "{name: joint, epochs: 1, learning_rates: {trunk: 0.002, bridge: 0.002, decoder: 0.002, heads: 0.002}, "
    "objectives: {captioning: 1.0, reward: 0.5, tags: 1.0, contrastive: 0.5, distillation: 0.1}}, "
    "{name: cached, epochs: 1, learning_rates: {bridge: 0.002, decoder: 0.002}}]"
)


def test_a_last_batch_smaller_than_the_launch_is_learnt_by_two_processes_as_by_one(
    draw_shapes: Callable[..., None], tmp_path: Path
) -> None:
    """5 photos in steps of 4: the fifth is process 0's alone, and of a single photo process 1 has none at all."""
    teacher = tmp_path / "teacher.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), teacher)
    draw_shapes(tmp_path / "shapes", images=20)
    header, *lines = (tmp_path / "shapes/captions.csv").read_text().splitlines()
    train_lines = [line for line in lines if line.endswith(",train")]
    val_lines = [line for line in lines if line.endswith(",val")][:1]
    recipes = []
    for photos in (5, 1):
        rows, words = tmp_path / f"shapes/{photos}.csv", tmp_path / f"{photos}.txt"
        rows.write_text("\n".join([header, *train_lines[:photos], *val_lines]) + "\n")
        words.write_text("a red square\n" * photos)
        more = [
            f"tags={{source: captions, num_words: {9 if photos > 1 else 2}}}",
            f"teacher={{name: test_efficientnet, weights: {teacher}}}",
            f"data.text={words}",
            EVERYTHING,
        ]
        for processes in (1, 2):
            run = tmp_path / f"{photos}_on_{processes}"
            batch = f"optimization.batch_size={4 // processes}"
            config = load_config(ROOT / "configs/tiny.yaml", overrides(rows, run, *more, batch))
            if processes == 1:
                train(config)
            else:
                recipes.append(written(config, tmp_path / f"{photos}.yaml"))
    finish(launch(*TWO_PROCESSES, Path(__file__).parent / "train_recipes.py", *recipes))
    for photos in (5, 1):
        one, two = tmp_path / f"{photos}_on_1", tmp_path / f"{photos}_on_2"
        assert len(losses(one)) == (6 if photos > 1 else 3)
        assert losses(two) == pytest.approx(losses(one), abs=1e-4)
        expected, found = (load_file(run / "best" / "model.safetensors") for run in (one, two))
        assert all(torch.allclose(found[name], expected[name], atol=1e-3) for name in expected)


def test_processes_that_find_unlike_memory_take_as_many_contrastive_passes(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(
        "phases=[{name: joint, epochs: 1, learning_rates: {trunk: 0.002, decoder: 0.002, heads: 0.002}, "
        "objectives: {captioning: 1.0, contrastive: 0.5}}]"
    )
    path = written(config, tmp_path / "recipe.yaml")
    finish(launch(*TWO_PROCESSES, Path(__file__).parent / "train_unevenly.py", path))


def test_a_split_batch_gives_the_gradient_of_the_whole(recipe: Recipe) -> None:
    """Captions differ in length, so a mean of the halves' means would not."""
    trainer = Trainer(recipe(), resume=False)
    phase = trainer.config.phases[0]
    joint, train_set, _ = trainer.enter(phase)
    items = [train_set[index] for index in range(8)]
    for item in items[:4]:
        item["captions"] = [ids[:3] for ids in item["captions"]]

    def gradient(batches: list[Batch]) -> torch.Tensor:
        collected = []
        hook = trainer.model.lm_head.weight.register_hook(lambda grad: collected.append(grad.clone()))
        trainer.step.take(joint, batches, phase, 0)
        hook.remove()
        return torch.stack(collected).sum(0)

    whole = gradient([collate(items, 1)])
    halves = gradient([collate(items[:4], 1), collate(items[4:], 1)])
    torch.testing.assert_close(halves, whole, atol=1e-6, rtol=1e-4)


def test_a_resting_trunk_keeps_every_bit_and_cached_features_change_nothing(recipe: Recipe, tmp_path: Path) -> None:
    rest = "phases.0.learning_rates={bridge: 0.001, decoder: 0.001}"
    before = Trainer(recipe(rest), resume=False).model.encoder.trunk.state_dict()
    train(recipe(rest))
    after = load_file(tmp_path / "run" / "last" / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(tensor, after[f"encoder.trunk.{name}"]), name
    # Augmentation that changes nothing rules the cache out: the trunk then runs in every step.
    identity = "phases.0.augmentation.color_jitter=1.0e-9"
    train(recipe(rest, identity, f"output_dir={tmp_path / 'pixels'}"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "pixels"), abs=2e-2)
    assert len(list((tmp_path / "run" / "features").iterdir())) == 2


def test_in_alternation_what_rests_keeps_every_bit_and_what_learns_moves(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (
        "phases=[{repeat: 2, phases: [{name: encoder, epochs: 1, learning_rates: {trunk: 0.001, bridge: 0.001}}, "
        "{name: decoder, epochs: 1, learning_rates: {decoder: 0.001}}]}]"
    )
    moved = []
    run_stretch = Trainer._run_stretch

    def watched(
        self: Trainer, model: nn.Module, train_set: CaptionDataset, validation_set: CaptionDataset, stretch: Stretch
    ) -> None:
        before = {name: tensor.clone() for name, tensor in self.model.named_parameters()}
        run_stretch(self, model, train_set, validation_set, stretch)
        after = dict(self.model.named_parameters())
        moved.append({name.split(".")[0] for name in before if not torch.equal(before[name], after[name])})

    monkeypatch.setattr(Trainer, "_run_stretch", watched)
    train(recipe(turns))
    assert moved == [{"encoder"}, {"decoder"}] * 2


def test_what_is_validated_from_cached_features_is_what_the_best_checkpoint_does(
    recipe: Recipe, tmp_path: Path
) -> None:
    """The trunk learns, then rests: its cached features have to be those of the averaged weights that are saved."""
    config = recipe("optimization.ema_decay=0.9", "phases.0.epochs=1", "validation.max_images=null")
    settle = config.phases[0].model_copy(update={"name": "settle", "learning_rates": {"decoder": 0.001}})
    config = config.model_copy(update={"phases": [config.phases[0], settle]})
    trainer = Trainer(config, resume=False)
    trainer.run()
    for name, tensor in trainer.model.encoder.trunk.named_parameters(prefix="encoder.trunk"):
        assert torch.equal(tensor, trainer.average.averages[name]), name


@pytest.mark.parametrize("reads_late", [False, True])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_images(
    recipe: Recipe, reads_late: bool
) -> None:
    """From the second step on; where the host hears of it late, the device skips the updates after it as well."""
    trainer = Trainer(recipe(), resume=False)
    if reads_late:
        trainer.step.read_late()
    take, weights = trainer.step.take, {}

    def breaking(*arguments: Any) -> StepNumbers:
        if trainer.progress.global_step == 1:
            with torch.no_grad():
                trainer.model.decoder.norm.weight[0] = torch.nan
            weights.update({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        elif weights:
            trainer.model.decoder.norm.weight.data.nan_to_num_()  # what would make the next update one of numbers
            weights["decoder.norm.weight"].nan_to_num_()
        return take(*arguments)

    trainer.step.take = breaking
    with pytest.raises(CaptionerError, match=r"step 2: the loss is nan; images: \d+\.png"):
        trainer.run()
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0, equal_nan=True)


def test_steps_that_are_read_late_learn_and_log_the_same(recipe: Recipe, tmp_path: Path) -> None:
    entries = []
    for name in ("at_once", "late"):
        config = recipe("optimization.ema_decay=0.9", f"output_dir={tmp_path / name}", "checkpoint_every_steps=3")
        trainer = Trainer(config, resume=False)
        if name == "late":
            trainer.step.read_late()
        trainer.run()
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        entries.append([{key: value for key, value in line.items() if key != "seconds"} for line in lines])
    assert entries[0] == entries[1] and [line["step"] for line in entries[0]] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    one, other = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("at_once", "late"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_each_validation_shows_photos_with_what_is_said_of_them(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trainer = Trainer(recipe("validation.samples=3"), resume=False)
    trainer.run()
    said, page = capsys.readouterr().err, (tmp_path / "run" / "report.html").read_text()
    for sample in trainer.data.validation[:3]:
        assert said.count(f"  {sample.id}: ") == 2 and sample.captions[0] in page
    assert f"  {trainer.data.validation[3].id}: " not in said and page.count("<dt>before</dt>") == 3


def test_an_output_folder_in_use_is_not_overwritten(recipe: Recipe) -> None:
    train(recipe("phases.0.epochs=1"))
    with pytest.raises(CaptionerError, match="--resume"):
        train(recipe("phases.0.epochs=1"))


def test_a_broken_photo_stops_or_is_left_out_as_the_recipe_says(
    recipe: Recipe, draw_shapes: Callable[..., None], tmp_path: Path
) -> None:
    draw_shapes(tmp_path / "shapes", images=40)
    (tmp_path / "shapes" / "00000.png").write_bytes(b"not a picture")
    data = tmp_path / "shapes" / "captions.csv"
    with pytest.raises(CaptionerError, match=r"00000\.png"):
        train(recipe(data=data))
    for rates in ("{trunk: 0.001, decoder: 0.001}", "{decoder: 0.001}"):
        skip = ["data.train.on_error=skip", f"phases.0.learning_rates={rates}", f"output_dir={tmp_path / rates[1:6]}"]
        train(recipe(*skip, data=data))
        assert all(loss > 0 for loss in losses(tmp_path / rates[1:6]))


def test_a_training_starts_from_a_trained_captioner_its_words_and_its_preprocessing(
    recipe: Recipe, tmp_path: Path
) -> None:
    first = recipe()
    donor, processor = load_model(train(first), "first")
    values = first.model_dump(exclude_unset=True) | {"pretrained": str(tmp_path / "run"), "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"a pretrained captioner has its own model\.encoder_kwargs"):
        RunConfig.model_validate(values)
    config = RunConfig.model_validate({name: values[name] for name in values.keys() - {"model", "tokenizer"}})
    trainer = Trainer(config, resume=False)
    for name, tensor in donor.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name
    assert trainer.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert trainer.processor.image_processor.to_dict() == processor.image_processor.to_dict()
    trainer.run()
    assert losses(tmp_path)[0] < losses(tmp_path / "run")[0] - 0.5
    card = ModelCard.load(tmp_path / "best" / "README.md")
    assert card.data.to_dict()["library_name"] == "transformers" and "160 images" in card.text
    assert f"| CIDEr | {trainer.progress.best:.4f} |" in card.text
    with pytest.raises(CaptionerError, match=r"max_caption_tokens 17 is above the 16 positions of"):
        more = config.data.model_copy(update={"max_caption_tokens": 17})
        Trainer(config.model_copy(update={"data": more, "output_dir": str(tmp_path / "more")}), resume=False)


def test_a_compiled_model_learns_the_same(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch traces of the two towers, run without generating code, which takes a minute here."""
    graphs: list[torch.fx.GraphModule] = []

    def noted(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=noted))
    same = ("phases.0.epochs=1", "model.dropout=0")
    for compiled in (False, True):
        train(recipe(*same, f"optimization.compile={compiled}", f"output_dir={tmp_path / str(compiled)}"))
        assert bool(graphs) == compiled
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)
    trained = [load_file(tmp_path / str(compiled) / "best" / "model.safetensors") for compiled in (False, True)]
    assert trained[0].keys() == trained[1].keys()
