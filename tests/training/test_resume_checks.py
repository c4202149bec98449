"""A fresh start gives what a clean folder gives, whatever lies there; a resumed training loses no photo and no word."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from captioner.config import PhaseConfig, RunConfig
from captioner.data.batches import Batch
from captioner.errors import CaptionerError
from captioner.model.tokenization_captioner import CaptionerTokenizer
from captioner.training.optimizer_step import OptimizerStep, StepNumbers
from captioner.training.trainer import Trainer, train

Recipe = Callable[..., RunConfig]
FROZEN = "phases=[{name: frozen, steps: 4, learning_rates: {bridge: 0.002, decoder: 0.002}}]"
JOINT = "phases=[{name: joint, epochs: 3, learning_rates: {trunk: 0.001, bridge: 0.001, decoder: 0.001}}]"


class Killed(Exception):
    pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str | int]]:
    """The photos of every step, as they are taken."""
    steps: list[list[str | int]] = []
    take = OptimizerStep.take

    def watched(
        self: OptimizerStep, model: nn.Module, batches: Sequence[Batch], phase: PhaseConfig, step: int
    ) -> StepNumbers:
        found = take(self, model, batches, phase, step)
        steps.append([identifier for batch in batches for identifier in batch.ids])
        return found

    monkeypatch.setattr(OptimizerStep, "take", watched)
    return steps


def train_until(config: RunConfig, steps: int) -> None:
    """Train, and be killed before the step after these."""
    trainer = Trainer(config, resume=False)
    take = trainer.step.take

    def breaking(*arguments: Any) -> StepNumbers:
        if trainer.progress.global_step == steps:
            raise Killed
        return take(*arguments)

    trainer.step.take = breaking  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.run()


def weights(run: Path, folder: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / folder / "model.safetensors")


def assert_same_training(run: Path, clean: Path) -> None:
    for folder in ("last", "best"):
        found, expected = weights(run, folder), weights(clean, folder)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), folder
    logs = [(path / "log.jsonl").read_text().splitlines() for path in (run, clean)]
    found, expected = ([{**json.loads(line), "seconds": 0} for line in log] for log in logs)
    assert found == expected
    assert (run / "tokenizer.model").read_bytes() == (clean / "tokenizer.model").read_bytes()


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


LEFTOVERS: dict[str, Callable[[Path], object]] = {
    "as it was left": lambda run: None,
    "a tokenizer cut short": lambda run: torn(run / "tokenizer.model"),
    "features of the other run under this one's names": lambda run: None,
    "features cut short": lambda run: [torn(path) for path in (run / "features").glob("*.npy")],
    "features half written": lambda run: [
        path.rename(path.with_suffix(".part")) for path in (run / "features").glob("*.npy")
    ],
    "a log cut short": lambda run: torn(run / "log.jsonl"),
    "a log that is no text": lambda run: (run / "log.jsonl").write_bytes(b"\xff\x00" * 100),
    "a shard of a stream": lambda run: [
        (run / "streamed").mkdir(),
        (run / "streamed" / "0123456789abcdef.tar").write_bytes(b"another stream"),
        (run / "streamed" / "0123456789abcdef.tar.0123abcd.tmp").write_bytes(b"half"),
    ],
    "temporary files": lambda run: [
        (run / name).write_bytes(b"half")
        for name in ("tokenizer.model.part", "report.html.part", "log.jsonl.0123abcd.tmp")
    ],
    "a best and a last half written": lambda run: [
        shutil.copytree(run / "features", run / name, dirs_exist_ok=True) for name in ("best.part", "last.part")
    ],
}


@pytest.fixture
def other_run(recipe: Recipe, draw_shapes: Callable[..., None], tmp_path: Path) -> Path:
    """What a run with other captions and another model left in `run`, killed before its first checkpoint."""
    draw_shapes(tmp_path / "others", images=20)
    data = tmp_path / "others" / "captions.csv"
    text = data.read_text()
    for number, word in enumerate(("red", "green", "blue", "yellow", "circle", "square", "triangle")):
        text = text.replace(word, f"word{number}")
    data.write_text(text)
    other = recipe(FROZEN, "checkpoint_every_steps=100", "model.encoder_pooling=2", "seed=5", data=data)
    train_until(other, steps=3)
    run = tmp_path / "run"
    assert not (run / "last").exists() and len((run / "log.jsonl").read_text().splitlines()) == 3
    assert len(list((run / "features").iterdir())) == 2
    return run


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_from_any_leftover_a_training_gives_what_it_gives_in_a_clean_folder(
    recipe: Recipe, other_run: Path, tmp_path: Path, leftover: str
) -> None:
    clean = tmp_path / "clean"
    train(recipe(FROZEN, f"output_dir={clean}"))
    if "names" in leftover:
        stale = next((other_run / "features").iterdir()).read_bytes()
        for path in (clean / "features").iterdir():
            (other_run / "features" / path.name).write_bytes(stale)
    LEFTOVERS[leftover](other_run)
    train(recipe(FROZEN))
    assert_same_training(other_run, clean)
    tokenizer = CaptionerTokenizer(str(other_run / "tokenizer.model"))
    assert tokenizer.unk_token_id not in tokenizer("a red circle").input_ids
    assert not [path for path in other_run.rglob("*") if path.suffix in (".part", ".tmp")]


def test_a_checkpoint_swapped_out_when_the_kill_came_is_one_to_resume(recipe: Recipe, tmp_path: Path) -> None:
    train_until(recipe(), steps=3)
    (tmp_path / "run" / "last").rename(tmp_path / "run" / "last.old")
    with pytest.raises(CaptionerError, match="run holds a training: pass --resume"):
        train(recipe())
    train(recipe(), resume=True)


def test_a_model_without_a_checkpoint_is_not_written_over(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe("phases.0.epochs=1"))
    shutil.rmtree(tmp_path / "run" / "last")
    with pytest.raises(CaptionerError, match=r"run holds a model, .*best: move it away"):
        train(recipe())


@pytest.mark.parametrize("found", ["nothing", "leftovers", "a model alone"])
def test_nothing_to_resume_is_said(recipe: Recipe, tmp_path: Path, found: str) -> None:
    run = tmp_path / "run"
    if found == "leftovers":
        train_until(recipe("checkpoint_every_steps=100"), steps=1)
    if found == "a model alone":
        train(recipe("phases.0.epochs=1"))
        shutil.rmtree(run / "last")
    before = sorted(run.rglob("*"))
    with pytest.raises(
        CaptionerError, match=r"run: nothing to resume, there is no .*last: to begin, leave out --resume"
    ):
        train(recipe(), resume=True)
    assert sorted(run.rglob("*")) == before


def test_an_epoch_is_resumed_with_the_photos_that_are_left(recipe: Recipe, seen: list[list[str | int]]) -> None:
    train_until(recipe("checkpoint_every_steps=1", "phases.0.epochs=1"), steps=2)
    train(recipe("phases.0.epochs=1", "validation.max_images=4", "optimization.weight_decay=0.5"), resume=True)
    assert Counter(itertools.chain(*seen)).most_common(1)[0][1] == 1 and len(set(itertools.chain(*seen))) == 160


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.batch_size=20", "batch_size times processes was 32, now 20"),
        ("phases.0.batch_size=16", "batch_size times processes was 32, now 16"),
        ("optimization.gradient_accumulation_steps=2", "gradient_accumulation_steps was 1, now 2"),
        ("seed=1", "seed was 0, now 1"),
        ("data.max_caption_tokens=5", "training data was"),
    ],
)
def test_an_epoch_is_not_resumed_in_another_order(
    recipe: Recipe, tmp_path: Path, seen: list[list[str | int]], override: str, message: str
) -> None:
    train_until(recipe("checkpoint_every_steps=1"), steps=2)
    before = weights(tmp_path / "run")
    seen.clear()
    with pytest.raises(CaptionerError, match=f"last: within an epoch.* these settings must not change: {message}"):
        train(recipe(override), resume=True)
    assert seen == [] and all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "run").items())


def test_other_photos_within_an_epoch_are_refused_and_corrected_words_are_not(
    recipe: Recipe, draw_shapes: Callable[..., None], tmp_path: Path
) -> None:
    draw_shapes(tmp_path / "shapes", images=80)
    data = tmp_path / "shapes" / "captions.csv"
    train_until(recipe("checkpoint_every_steps=1", data=data), steps=1)
    text = data.read_text()
    data.write_text(text.replace("00000.png", "00079.png"))
    with pytest.raises(CaptionerError, match="training data was"):
        train(recipe(data=data), resume=True)
    data.write_text(text.replace("red", "blue", 1))
    train(recipe(data=data), resume=True)


def test_between_epochs_batches_and_data_may_change(recipe: Recipe, seen: list[list[str | int]]) -> None:
    train_until(recipe("phases.0.epochs=2"), steps=5)
    seen.clear()
    train(recipe("optimization.batch_size=20"), resume=True)
    assert [len(step) for step in seen] == [20] * 8 and len(set(itertools.chain(*seen))) == 160


def test_turns_that_are_counted_in_steps_go_on_in_the_same_order(recipe: Recipe) -> None:
    turns = (
        "phases=[{repeat: 3, phases: [{name: encoder, steps: 2, learning_rates: {trunk: 0.001}}, "
        "{name: decoder, steps: 1, learning_rates: {decoder: 0.001}}]}]"
    )
    train_until(recipe(turns, "checkpoint_every_steps=100"), steps=3)
    with pytest.raises(CaptionerError, match="batch_size times processes was 32, now 16"):
        train(recipe(turns, "optimization.batch_size=16"), resume=True)
    train(recipe(turns), resume=True)


def test_phases_that_are_over_stay_and_later_ones_may_change(recipe: Recipe, tmp_path: Path) -> None:
    def phases(*names: str) -> str:
        one = "{{name: {}, epochs: 1, learning_rates: {{trunk: 0.001, decoder: 0.001}}}}"
        return f"phases=[{', '.join(one.format(name) for name in names)}]"

    train_until(recipe(phases("a", "b"), "checkpoint_every_steps=1"), steps=7)
    for wrong in (("b", "a"), ("a", "c"), ("a", "a2", "b")):
        with pytest.raises(CaptionerError, match="has been trained in a, b; the recipe begins with"):
            train(recipe(phases(*wrong)), resume=True)
    train(recipe(phases("a", "b", "c")), resume=True)
    assert len([line for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if '"loss"' in line]) == 15


def test_a_training_that_is_over_says_so(recipe: Recipe, capsys: pytest.CaptureFixture) -> None:
    train(recipe("phases.0.epochs=1"))
    capsys.readouterr()
    train(recipe("phases.0.epochs=1"), resume=True)
    assert "last: the recipe has been trained to its end" in capsys.readouterr().err


@pytest.mark.parametrize("every_steps", [None, 1, 2, 5])
def test_a_plateau_is_validated_once_and_the_next_phase_begins_at_its_beginning(
    recipe: Recipe, tmp_path: Path, seen: list[list[str | int]], every_steps: int | None
) -> None:
    one = "{{name: {}, epochs: 6, learning_rates: {{decoder: 1.0e-12}}}}"
    config = recipe(
        f"phases=[{one.format('still')}, {one.format('next')}]",
        f"validation.every_steps={'null' if every_steps is None else every_steps}",
        "validation.patience=1",
    )
    trainer = Trainer(config, resume=False)
    trainer.run()
    validated = [entry["step"] for entry in trainer.progress.history]
    assert len(set(validated)) == len(validated) == 4
    train_set = trainer.data.train_set(trainer.config.phases[1], trainer.processor)
    first = trainer.data.steps(train_set, config.schedule()[6], 6, 0, 1)[0]
    begun = validated[1]
    expected = {trainer.data.train[index].id for places in first for _, index in places}
    assert set(seen[begun]) == expected
    assert json.loads((tmp_path / "run" / "last" / "progress.json").read_text())["progress"]["step"] == 0


def test_a_kill_upon_a_plateau_loses_no_photo_of_the_next_phase(recipe: Recipe, seen: list[list[str | int]]) -> None:
    """The checkpoint is of the middle of an epoch that is over for its plateau."""
    one = "{{name: {}, epochs: 1, learning_rates: {{decoder: 1.0e-12}}}}"
    config = recipe(f"phases=[{one.format('still')}, {one.format('next')}]", "validation={every_steps: 1, patience: 1}")
    trainer = Trainer(config, resume=False)

    def killed() -> None:
        raise Killed

    trainer._end_stretch = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.run()
    assert trainer.progress.step == 2
    seen.clear()
    resumed = Trainer(config, resume=True)
    resumed.config.validation.patience = None
    resumed.config.validation.every_steps = None
    resumed._plateaued = lambda phase: phase.name == "still"  # type: ignore[method-assign]
    resumed.run()
    assert len(set(itertools.chain(*seen))) == 160


@pytest.mark.parametrize(
    "end", ['{"step": 4, "lo', '{"step": 4}\n{"step"', "\x00\x00\x00", "7", '"step"', "[" * 5000, "é"[:1]]
)
def test_a_torn_log_does_not_stop_what_is_resumed(recipe: Recipe, tmp_path: Path, end: str) -> None:
    config = recipe("phases.0.epochs=1")
    clean = tmp_path / "clean"
    train(recipe("phases.0.epochs=1", f"output_dir={clean}"))
    train_until(config, steps=3)
    log = tmp_path / "run" / "log.jsonl"
    log.write_bytes(log.read_bytes() + end.encode()[:-1] + b"\xc3" if end == "é" else log.read_bytes() + end.encode())
    train(config, resume=True)
    assert_same_training(tmp_path / "run", clean)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_size=32", "model.hidden_size was 64, now 32"),
        ("model.num_hidden_layers=1", "model.num_hidden_layers was 2, now 1"),
        ("model.encoder_kwargs.depth=1", "model.encoder_kwargs was .*'depth': 2.* now .*'depth': 1"),
        ("model.encoder_pooling=2", "model.encoder_pooling was 1, now 2"),
        ("model.image_size=64", "model.image_size was 32, now 64"),
        ("tokenizer.vocab_size=20", "tokenizer.vocab_size was 64, now 20"),
        ("tokenizer.lowercase=false", "tokenizer.lowercase was True, now False"),
        ("pretrained.encoder=elsewhere", "pretrained.encoder was None, now 'elsewhere'"),
        ("tags={source: captions, num_words: 4}", "tags was .*, now"),
    ],
)
def test_another_model_is_not_resumed_and_its_key_is_named(
    recipe: Recipe, tmp_path: Path, override: str, message: str
) -> None:
    tags = ["tags={source: captions, num_words: 6}", "phases.0.objectives={captioning: 1.0, tags: 1.0}"]
    rates = "phases.0.learning_rates={trunk: 0.001, decoder: 0.001, heads: 0.001}"
    train_until(recipe(*tags, rates), steps=3)
    with pytest.raises(CaptionerError, match=f"last: these settings must not change: {message}"):
        train(recipe(*tags, rates, override), resume=True)


def test_dropout_checkpointing_and_averages_may_change(recipe: Recipe) -> None:
    train_until(recipe(), steps=3)
    train(recipe("model.dropout=0.2", "model.gradient_checkpointing=true", "optimization.ema_decay=0.9"), resume=True)


def test_what_other_words_are_learnt_from_is_not_asked_again(
    recipe: Recipe, draw_shapes: Callable[..., None], tmp_path: Path
) -> None:
    """The words of a resumed training are its checkpoint's, whatever has become of the captions and tokenizer.model."""
    draw_shapes(tmp_path / "shapes", images=80)
    data = tmp_path / "shapes" / "captions.csv"
    train_until(recipe("phases.0.epochs=3", data=data), steps=2)
    before = Trainer(recipe(data=data), resume=True).processor.tokenizer.get_vocab()
    (tmp_path / "run" / "tokenizer.model").write_bytes(b"damaged")
    data.write_text(data.read_text().replace("circle", "disc"))
    assert Trainer(recipe(data=data), resume=True).processor.tokenizer.get_vocab() == before


@pytest.mark.parametrize("name", ["progress.json", "training_state.safetensors", "model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [torn, Path.unlink], ids=["torn", "lost"])
def test_a_damaged_checkpoint_costs_one_line(
    recipe: Recipe, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    train_until(recipe(), steps=3)
    damage(tmp_path / "run" / "last" / name)
    with pytest.raises(CaptionerError, match=r"^\S*run/last: [^\n]*$"):
        train(recipe(), resume=True)
