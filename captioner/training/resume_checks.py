"""Checks that a checkpoint is one that the recipe can continue."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from captioner.config import AdaptersConfig, RunConfig
from captioner.data.dataset import CaptionDataset, TextDataset
from captioner.errors import CaptionerError
from captioner.hub.load import load_model
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.training.checkpoint import Progress

MAY_CHANGE = {"dropout", "initializer_range", "use_cache"}
"""Configuration fields that may change when a training is resumed; the weights do not depend on them."""


def origin(config: RunConfig) -> dict[str, Any]:
    """Return the part of a recipe that determines model and tokenizer, by key."""
    sections = {
        "pretrained": config.pretrained.model_dump(mode="json"),
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json", exclude={"dropout", "gradient_checkpointing"}),
        "adapters": config.adapters.model_dump() if config.adapters else dict.fromkeys(AdaptersConfig.model_fields),
    }
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}


def refuse_another_origin(last: Path, before: dict[str, Any], config: RunConfig) -> None:
    """Compare the recipe with `before`, the `origin` of the checkpoint; resuming would ignore a difference.

    Raises:
        CaptionerError: they differ.
    """
    _refuse_changes(last, before, origin(config))


def refuse_other_phases(last: Path, progress: Progress, config: RunConfig) -> None:
    """Compare the phases that have been trained with the first phases of the recipe.

    Raises:
        CaptionerError: they differ.
    """
    phases = [stretch.phase.name for stretch in config.schedule()][: len(progress.phases)]
    if progress.phases[: len(phases)] != phases:
        raise CaptionerError(
            f"{last}: has been trained in {', '.join(progress.phases)}; the recipe begins with {', '.join(phases)}: "
            "phases that are finished must not change"
        )


def load_weights(last: Path, model: CaptionerForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load the checkpoint's weights into the recipe's model.

    Raises:
        CaptionerError: the checkpoint cannot be read; its model or vocabulary differs, perhaps because of other data.
    """
    saved, processor = load_model(last, str(last))
    fields = [*sorted(CaptionerConfig.__annotations__.keys() - MAY_CHANGE), "problem_type"]
    before, now = ({name: getattr(found, name) for name in fields} for found in (saved.config, model.config))
    _refuse_changes(last, before, now)
    if processor.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise CaptionerError(f"{last}: its vocabulary differs from that of the recipe's tokenizer")
    model.load_state_dict(saved.state_dict())


def course(config: RunConfig, batch_size: int, data_set: CaptionDataset | TextDataset) -> dict[str, Any]:
    """Return what determines the photos of each step of a phase; `batch_size` is the total of all processes."""
    return {
        "batch_size times processes": batch_size,
        "gradient_accumulation_steps": config.optimization.gradient_accumulation_steps,
        "seed": config.seed,
        "training data": data_set.fingerprint(),
    }


def refuse_another_course(last: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare the `course` of a phase that continues with the one it began with.

    Raises:
        CaptionerError: they differ, so that the rest of an epoch would not be the photos it has not seen.
    """
    _refuse_changes(last, before, now, "within an epoch, or between the turns of a phase counted in steps, ")


def _refuse_changes(last: Path, before: dict[str, Any], now: dict[str, Any], when: str = "") -> None:
    changed = [
        f"{name} was {before[name]!r:.60}, now {now[name]!r:.60}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if changed:
        raise CaptionerError(
            f"{last}: {when}these settings must not change: {'; '.join(changed[:5])}. "
            "Resume with the same recipe, or set another output_dir"
        )
