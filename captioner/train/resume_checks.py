"""What a training finds in its folder: a fresh one trusts nothing there, a resumed one a checkpoint that is its own."""

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from captioner.config import RunConfig
from captioner.data.dataset import CaptionDataset, TextDataset
from captioner.errors import CaptionerError
from captioner.hub.load import load_model
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.train.checkpoint import Progress

FILES = ("tokenizer.model", "log.jsonl", "report.html")
LEFTOVERS = (
    *(f"{name}{ending}" for name in FILES for ending in ("", ".part", ".*.tmp")),
    *("best.part", "last.part", "features/*.npy", "features/*.part", "streamed/*.tar", "streamed/*.tmp"),
)
"""What an earlier training that never wrote a checkpoint may have left in its folder."""

MAY_CHANGE = {"dropout", "initializer_range", "use_cache"}
"""Fields of a model's configuration that a checkpoint's weights do not depend on."""


def clear(output_dir: Path) -> None:
    """Remove what an earlier training left, which may have had other data and settings."""
    for pattern in LEFTOVERS:
        for path in output_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def origin(config: RunConfig) -> dict[str, Any]:
    """What of a recipe its checkpoints' weights and words come from, by the keys' names."""
    sections = {
        "pretrained": config.pretrained.model_dump(mode="json"),
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json", exclude={"dropout", "gradient_checkpointing"}),
    }
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}


def refuse_another_origin(last: Path, before: dict[str, Any], config: RunConfig) -> None:
    """
    Raises:
        CaptionerError: the recipe has other settings than that of the checkpoint, `before`, which resuming would
            pass over in silence.
    """
    _refuse_changes(last, before, origin(config))


def refuse_other_phases(last: Path, progress: Progress, config: RunConfig) -> None:
    """
    Raises:
        CaptionerError: what has been trained is not how the recipe begins.
    """
    phases = [stretch.phase.name for stretch in config.schedule()][: len(progress.phases)]
    if progress.phases[: len(phases)] != phases:
        raise CaptionerError(
            f"{last}: has been trained in {', '.join(progress.phases)}; the recipe begins with {', '.join(phases)}: "
            "phases that are over have to stay as they were"
        )


def load_weights(last: Path, model: CaptionerForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the recipe's model the weights of the checkpoint.

    Raises:
        CaptionerError: the checkpoint cannot be read; its model is another, as other data make it too, or has other
            words.
    """
    saved, processor = load_model(last, str(last))
    fields = [*sorted(CaptionerConfig.__annotations__.keys() - MAY_CHANGE), "problem_type"]
    before, now = ({name: getattr(found, name) for name in fields} for found in (saved.config, model.config))
    _refuse_changes(last, before, now)
    if processor.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise CaptionerError(f"{last}: its vocabulary is not that of the recipe's tokenizer")
    model.load_state_dict(saved.state_dict())


def course(config: RunConfig, batch_size: int, data_set: CaptionDataset | TextDataset) -> dict[str, Any]:
    """What decides which photos each step of a phase takes; `batch_size` is that of all processes together."""
    return {
        "batch_size times processes": batch_size,
        "gradient_accumulation_steps": config.optimization.gradient_accumulation_steps,
        "seed": config.seed,
        "training data": data_set.fingerprint(),
    }


def refuse_another_course(last: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """
    Raises:
        CaptionerError: the rest of an epoch would not be the photos that its steps so far left over.
    """
    _refuse_changes(last, before, now, "within an epoch, or between the turns of a phase that is counted in steps, ")


def _refuse_changes(last: Path, before: dict[str, Any], now: dict[str, Any], when: str = "") -> None:
    changed = [
        f"{name} was {before[name]!r:.60}, now {now[name]!r:.60}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if changed:
        raise CaptionerError(
            f"{last}: {when}a training goes on as it began: {'; '.join(changed[:5])}. "
            "Resume with the recipe it had, or set another output_dir"
        )
