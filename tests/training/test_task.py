"""Each objective teaches what it should, whom it should, and counts only what somebody labelled."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from captioner.config import RunConfig
from captioner.data.batches import Batch, collate
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner
from captioner.model.modeling_captioner import IGNORE_INDEX
from captioner.training.optimizer_step import largest_that_fits
from captioner.training.task import asymmetric_loss
from captioner.training.trainer import Trainer, train

Recipe = Callable[..., RunConfig]
ENCODER = "learning_rates: {trunk: 0.002, bridge: 0.002, heads: 0.01}"
WORD_TAGS = "tags={source: captions, num_words: 8}"


def phase(objectives: str, rates: str = ENCODER, **more: object) -> str:
    length = "" if "epochs" in more else "epochs: 2, "
    extra = "".join(f", {key}: {value}" for key, value in more.items())
    return f"phases=[{{name: only, {length}{rates}, objectives: {{{objectives}}}{extra}}}]"


def logged(run: Path, key: str) -> list[float]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def moved_parts(recipe: RunConfig, run: Path) -> set[str]:
    before = Trainer(recipe.model_copy(update={"output_dir": str(run.with_name("new"))}), resume=False).model
    after = load_file(run / "last" / "model.safetensors")
    return {
        ".".join(name.split(".")[:2])
        for name, tensor in before.state_dict().items()
        if name in after and not torch.equal(tensor, after[name])
    }


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    torch.manual_seed(0)
    classifier = timm.create_model("test_efficientnet")
    torch.nn.init.normal_(classifier.classifier.weight, std=0.5)  # a teacher with opinions
    save_file(classifier.state_dict(), tmp_path / "teacher.safetensors")
    return f"teacher={{name: test_efficientnet, weights: {tmp_path / 'teacher.safetensors'}}}"


@pytest.mark.parametrize("objective", ["tags", "contrastive", "distillation"])
def test_an_objective_of_images_teaches_the_encoder_and_its_own_head_alone(
    recipe: Recipe, tmp_path: Path, teacher: str, objective: str
) -> None:
    heads = {"tags": "tags", "contrastive": "contrastive", "distillation": "teacher"}
    config = recipe(phase(f"{objective}: 1.0", epochs=8), WORD_TAGS, teacher)
    train(config)
    losses = logged(tmp_path / "run", f"loss/{objective}")
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    taught = {"encoder.trunk", "encoder.bridge", f"heads.{heads[objective]}"}
    assert moved_parts(config, tmp_path / "run") == taught
    assert losses and all(norm > 0 for norm in logged(tmp_path / "run", "grad_norm/heads"))


def test_words_alone_teach_the_decoder_without_its_cross_attention(recipe: Recipe, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a red square above a blue circle\n\n" * 320, encoding="utf-8")
    config = recipe(phase("language_modeling: 1.0", "learning_rates: {decoder: 0.005}"), f"data.text={words}")
    train(config)
    after = load_file(tmp_path / "run" / "last" / "model.safetensors")
    before = Trainer(config.model_copy(update={"output_dir": str(tmp_path / "new")}), resume=False).model.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("decoder.") and ".cross_attn" not in name for name in moved)
    losses = logged(tmp_path / "run", "loss/language_modeling")
    assert losses[-1] < 0.5 * losses[0]


def test_images_that_nobody_labelled_change_no_loss_but_the_teachers(recipe: Recipe, teacher: str) -> None:
    rates = "learning_rates: {trunk: 0.002, bridge: 0.002, decoder: 0.002, heads: 0.002}"
    objectives = "captioning: 1.0, reward: 1.0, tags: 1.0, contrastive: 1.0, distillation: 1.0"
    trainer = Trainer(recipe(phase(objectives, rates), WORD_TAGS, teacher), resume=False)
    only = trainer.config.schedule()[0].phase
    joint, train_set, _ = trainer.enter(only)
    items = [train_set[index] for index in range(6)]
    unlabelled = [
        item
        | {"id": f"{item['id']} of another folder", "captions": [], "tags": torch.full_like(item["tags"], IGNORE_INDEX)}
        for item in (train_set[index] for index in range(6, 10))
    ]

    def losses(batch: Batch) -> tuple[dict[str, float], dict[str, int]]:
        with torch.no_grad():
            found, _ = joint(batch, only, 0)
        return {name: loss.item() for name, loss in found.items()}, trainer.task.item_counts(batch, only)

    alone, counts = losses(collate(items, 1))
    mixed, mixed_counts = losses(collate([*items, *unlabelled], 1))
    assert mixed.pop("distillation") > alone.pop("distillation")
    assert (mixed_counts.pop("distillation"), counts.pop("distillation")) == (10, 6)
    assert mixed == pytest.approx(alone, rel=1e-5) and mixed_counts == counts
    parts = collate([*items, *unlabelled], 1).split(4)
    assert sum(losses(part)[0]["captioning"] for part in parts) == pytest.approx(alone["captioning"], rel=1e-5)


def test_asymmetric_loss_without_asymmetry_is_binary_cross_entropy_and_forgives_what_is_surely_absent() -> None:
    logits, targets = torch.randn(4, 7), torch.randint(0, 2, (4, 7)).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    torch.testing.assert_close(asymmetric_loss(logits, targets, gamma_negative=0.0, margin=0.0), expected)
    assert asymmetric_loss(torch.full((1, 1), -3.0), torch.zeros(1, 1)) == 0  # sigmoid(-3) is below the margin


def test_unlabelled_photos_teach_by_the_teachers_word_and_single_labels_by_their_class(
    recipe: Recipe, draw_shapes: Callable[..., None], shapes: Path, tmp_path: Path, teacher: str
) -> None:
    draw_shapes(tmp_path / "more", images=40)
    (tmp_path / "more" / "captions.csv").unlink()
    labelled = tmp_path / "labelled.csv"
    lines = shapes.read_text().splitlines()
    rows = [f"{shapes.parent / line.split(',')[0]},{line.split(',')[1]},{line.split(',')[2]}" for line in lines[1:]]
    labelled.write_text(
        "\n".join(["image,caption,split,first", *(f"{row},{row.split(',')[1].split()[1]}" for row in rows)])
    )
    config = recipe(
        phase("tags: 1.0, distillation: 0.1", epochs=12),
        "tags={problem_type: single_label_classification}",
        teacher,
        f"data.train=[{{path: {labelled}, split: train, label_column: first}}, "
        f"{{path: {tmp_path / 'more'}, captioned: false}}]",
        "validation.every_steps=1000",
        data=labelled,
    )
    trainer = Trainer(config, resume=False)
    assert len(trainer.data.train_set(config.schedule()[0].phase, trainer.processor)) == 160 + 40
    captioner = Captioner.from_pretrained(trainer.run())
    samples = trainer.data.train[:50]
    found = captioner([sample.image for sample in samples], num_beams=1, max_new_tokens=2)
    assert all(len(caption.tags) == 1 and 0 < caption.tags[0].score <= 1 for caption in found)
    right = sum(
        caption.tags[0].text == sample.captions[0].split()[1] for caption, sample in zip(found, samples, strict=True)
    )
    assert right > 25  # by chance 12


def test_turns_of_steps_go_on_through_the_data_and_validation_follows_its_own_count(
    recipe: Recipe, tmp_path: Path
) -> None:
    """Two steps of encoder, then three of decoder, four times: 8 and 12 of an epoch's 5 steps."""
    turns = (
        "phases=[{repeat: 4, phases: [{name: encoder, steps: 2, learning_rates: {trunk: 0.001, bridge: 0.001}}, "
        "{name: decoder, steps: 3, learning_rates: {decoder: 0.001}}]}]"
    )
    config = recipe(turns, "validation.every_steps=7")
    trainer = Trainer(config, resume=False)
    train_set = trainer.data.train_set(config.schedule()[0].phase, trainer.processor)
    encoder = [stretch for stretch in config.schedule() if stretch.phase.name == "encoder"]
    seen = [place for stretch in encoder for step in trainer.data.steps(train_set, stretch, 0, 0, 1)
            for batch in step for place in batch]  # fmt: skip
    assert len(seen) == len(set(seen)) == 8 * 32
    assert {index for epoch, index in seen if epoch == 0} == set(range(160))
    trainer.run()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "validation/CIDEr" in line] == [7, 14, 20]


def test_a_phase_without_progress_ends_and_the_next_begins(recipe: Recipe, tmp_path: Path) -> None:
    rests = "{name: hopeless, epochs: 9, learning_rates: {decoder: 1.0e-12}}"
    train(
        recipe(
            f"phases=[{rests}, {{name: next, epochs: 1, learning_rates: {{decoder: 0.001}}}}]", "validation.patience=2"
        )
    )
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in log if "validation/CIDEr" in line] == ["hopeless"] * 3 + ["next"]


def test_the_largest_halving_that_fits_is_taken() -> None:
    assert largest_that_fits(24, lambda size: size <= 7) == 6
    with pytest.raises(CaptionerError, match="out of memory with a single image"):
        largest_that_fits(8, lambda size: False)


def test_an_objective_without_what_it_needs_is_refused_by_name(recipe: Recipe) -> None:
    for objectives, rates, message in (
        ("tags: 1.0", ENCODER, "the objective tags needs the key tags"),
        ("distillation: 1.0", ENCODER, "the objective distillation needs the key teacher"),
        ("language_modeling: 1.0", "learning_rates: {decoder: 0.1}", r"needs the key data\.text"),
        ("tags: 1.0", "learning_rates: {decoder: 0.1}", "no objective of the phase reaches decoder"),
        (
            "captioning: 1.0, language_modeling: 1.0",
            "learning_rates: {decoder: 0.1}",
            "language_modeling has no images",
        ),
    ):
        with pytest.raises(CaptionerError, match=message):
            recipe(phase(objectives, rates))


def test_an_epoch_takes_each_source_as_often_as_its_weight_and_ids_of_sources_differ(
    recipe: Recipe, shapes: Path
) -> None:
    sources = f"[{{path: {shapes}, split: train, weight: 0.5}}, {{path: {shapes}, split: val, weight: 3}}]"
    validation = f"data.validation=[{{path: {shapes}, split: val}}, {{path: {shapes}, split: train, on_error: skip}}]"
    trainer = Trainer(recipe(f"data.train={sources}", validation, "validation.max_images=100"), resume=False)
    assert [sample.id for sample in trainer.data.validation][38:42] == [
        "0:00194.png",
        "0:00199.png",
        "1:00000.png",
        "1:00001.png",
    ]
    assert trainer.data.optional_validation == {f"1:{sample.id[2:]}" for sample in trainer.data.train[:160]}
    (stretch, *_) = trainer.config.schedule()
    train_set = trainer.data.train_set(stretch.phase, trainer.processor)
    passes = [Counter(trainer_places(trainer, train_set, stretch, epoch)) for epoch in (0, 1)]
    assert all(max(places.values()) == 1 for places in passes)  # no augmentation is drawn twice
    seen = [Counter(index for _, index in places) for places in passes]
    assert all(seen[0][index] + seen[1][index] == 1 for index in range(160))  # every other epoch
    assert all(counts[index] == 3 for counts in seen for index in range(160, 200))
    assert not passes[0].keys() & passes[1].keys()
    assert len({sample.id for sample in trainer.data.train}) == 200


def test_weights_that_leave_an_epoch_without_an_image_are_refused(recipe: Recipe, shapes: Path) -> None:
    trainer = Trainer(recipe(f"data.train={{path: {shapes}, split: train, weight: 0.001}}"), resume=False)
    with pytest.raises(CaptionerError, match=r"takes none of its 160 images: the weights of the training sources"):
        trainer.run()


def trainer_places(trainer: Trainer, train_set: Any, stretch: Any, epoch: int) -> list[Any]:
    steps = trainer.data.steps(train_set, stretch, epoch, 0, 1)
    return [place for step in steps for batch in step for place in batch]


def test_a_phase_takes_the_images_that_its_objectives_can_use(
    recipe: Recipe, shapes: Path, draw_shapes: Callable[..., None], tmp_path: Path
) -> None:
    draw_shapes(tmp_path / "more", images=12)
    (tmp_path / "more" / "captions.csv").rename(tmp_path / "labels.csv")
    rows = (tmp_path / "labels.csv").read_text().splitlines()[1:]
    labels = "".join(f'{{"image": "more/{row.split(",")[0]}", "shows": ["round", "{row[-1]}"]}}\n' for row in rows)
    (tmp_path / "labels.jsonl").write_text(labels)
    more = f"{{path: {tmp_path / 'labels.jsonl'}, images: {tmp_path}, captioned: false, label_column: shows}}"
    rates = "learning_rates: {trunk: 0.001, bridge: 0.001, decoder: 0.001}"
    phases = (
        f"phases=[{{name: alone, epochs: 1, {rates}}}, "
        f"{{name: both, epochs: 1, {rates}, batch_size: 10, dropout: 0.25, "
        "objectives: {captioning: 1.0, tags: 1.0}}]"
    )
    config = recipe(
        f"data.train=[{{path: {shapes}, split: train}}, {more}]", "tags={source: both, num_words: 8}", phases
    )
    trainer = Trainer(config, resume=False)
    alone, both = config.schedule()
    assert len(trainer.data.train_set(alone.phase, trainer.processor)) == 160
    train_set = trainer.data.train_set(both.phase, trainer.processor)
    assert len(train_set) == 172 and len(trainer.data.steps(train_set, both, 0, 0, 1)) == 18
    labels_known, words_known = (train_set[index]["tags"] != IGNORE_INDEX for index in (171, 0))
    assert int(labels_known.sum()) == len(trainer.data.labels) and int(words_known.sum()) == 8
    trainer.run()
    assert trainer.model.decoder.dropout.p == 0.25 and trainer.model.config.dropout == 0.0
