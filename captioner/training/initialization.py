"""Builds what a recipe trains: model and processor, from pretrained parts or anew, and the task with its losses."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from captioner.config import RunConfig
from captioner.convert import as_captioner
from captioner.data.tokenizer_training import train_tokenizer
from captioner.errors import CaptionerError
from captioner.hub.find import find_model
from captioner.hub.load import load_model
from captioner.model.build import build_image_processor, build_model, change_image_size, load_trunk, names_timm_model
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.model.processing_captioner import CaptionerProcessor
from captioner.model.tokenization_captioner import CaptionerTokenizer
from captioner.training.fsdp import WholeModel
from captioner.training.rewards import SelfCritic
from captioner.training.task import CaptioningTask
from captioner.training.teacher import Teacher
from captioner.training.training_data import TrainingData

Say = Callable[[str], None]

OF_THE_DECODER = (
    "vocab_size",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "hidden_act",
    "layer_norm_eps",
    "post_norm",
    "embedding_norm",
    "output_transform",
    "image_prefix",
    "cross_attention_size",
    "head_bias",
    "tie_word_embeddings",
)
"""Configuration fields that a recipe does not set and that a pretrained decoder determines."""


def heads_of(config: RunConfig, tags: list[str], teacher: nn.Module | None) -> dict[str, Any]:
    """Return the configuration fields of the heads that the recipe's objectives need."""
    heads: dict[str, Any] = {}
    if tags and config.tags:
        heads |= {"tags": tags, "problem_type": config.tags.problem_type}
    if teacher is not None:
        heads["teacher_classes"] = teacher.num_classes
    if config.uses("contrastive"):
        heads["contrastive_size"] = config.model.contrastive_size
    return heads


def build_task(
    config: RunConfig,
    data: TrainingData,
    processor: CaptionerProcessor,
    whole: WholeModel,
    classifier: nn.Module | None,
) -> CaptioningTask:
    """Build the task with the critic and the teacher that the recipe's objectives need."""
    critic = teacher = None
    if config.uses("reward"):
        captions = {sample.id: sample.captions for sample in data.train if sample.captions}
        critic = SelfCritic(captions, processor.tokenizer, config.data.max_caption_tokens, config.seed)
    if classifier is not None and config.teacher is not None:
        preprocessing = processor.image_processor.preprocessing
        teacher = Teacher(classifier, config.teacher.temperature, preprocessing, whole.model.device)
    return CaptioningTask(whole, config.tags, critic, teacher, config.optimization.compile)


def build_captioner(
    config: RunConfig,
    captions: Iterable[str],
    heads: dict[str, Any],
    accelerator: Accelerator,
    say: Say,
    last: Path | None = None,
) -> tuple[CaptionerProcessor, CaptionerForConditionalGeneration]:
    """Build the recipe's captioner, and load its pretrained parts.

    Args:
        captions: train a new tokenizer if the recipe needs one.
        heads: fields of the model's configuration.
        say: prints what was loaded, what is new, and what was not used.
        last: the checkpoint to resume, which then provides the tokenizer.

    Raises:
        CaptionerError: weights are missing or do not fit; the model cannot be built.
    """
    if config.pretrained.captioner:
        processor, model = _whole(config, heads, accelerator, say)
    else:
        processor, model = _from_parts(config, captions, heads, accelerator, say, last)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return processor, model


def _whole(
    config: RunConfig, heads: dict[str, Any], accelerator: Accelerator, say: Say
) -> tuple[CaptionerProcessor, CaptionerForConditionalGeneration]:
    name = str(config.pretrained.captioner)
    changes = config.model.model_dump(include=config.model.model_fields_set & {"dropout"})
    model, processor = _load_captioner(name, accelerator, **changes, **heads)
    if model.heads.tags is not None and _config_of(name).tags != model.config.tags:
        model.heads.tags.reset_parameters()  # loaded if it has as many tags, which are others
    longest, positions = config.data.max_caption_tokens, model.config.max_position_embeddings
    if longest > positions:
        raise CaptionerError(f"data.max_caption_tokens {longest} is above the {positions} positions of {name}")
    if "image_size" in config.model.model_fields_set:
        _change_image_size(model, config.model.image_size, name, say)
        processor.image_processor.size = {"height": config.model.image_size, "width": config.model.image_size}
    say(f"captioner from {name}" + (f"; heads from the recipe: {', '.join(heads)}" if heads else ""))
    return processor, model


def _from_parts(
    config: RunConfig,
    captions: Iterable[str],
    heads: dict[str, Any],
    accelerator: Accelerator,
    say: Say,
    last: Path | None,
) -> tuple[CaptionerProcessor, CaptionerForConditionalGeneration]:
    settings, encoder, decoder = config.model, config.pretrained.encoder, config.pretrained.decoder
    donor = _load_captioner(decoder, accelerator) if decoder else None
    tokenizer = donor[1].tokenizer if donor else _tokenizer(config, captions, accelerator, last)
    fields = settings.model_dump(exclude={"gradient_checkpointing", "resize_mode", "crop_pct", "contrastive_size"})
    language = {name: getattr(donor[0].config, name) for name in OF_THE_DECODER} if donor else {}
    try:
        model = build_model(CaptionerConfig(**{"vocab_size": len(tokenizer), **fields, **heads, **language}))
        if encoder and (names_timm_model(encoder) or encoder.endswith(".safetensors")):
            with accelerator.main_process_first():
                unused = load_trunk(model, encoder)
            say(f"trunk from {encoder}: fully loaded; not used: {', '.join(unused) or 'nothing'}")
        elif encoder:
            whole, _ = _load_captioner(encoder, accelerator)
            _change_image_size(whole, settings.image_size, encoder, say)
            _take(model, whole, "encoder.", encoder, say)
    except (ValueError, RuntimeError) as error:
        raise CaptionerError(f"model: {error}") from error
    if donor and decoder:
        _take(model, donor[0], "decoder.", decoder, say)
        if model.config.head_bias or not model.config.tie_word_embeddings:
            _take(model, donor[0], "lm_head.", decoder, say)
    image_processor = build_image_processor(model, settings.resize_mode, settings.crop_pct)
    return CaptionerProcessor(image_processor, tokenizer), model


def _load_captioner(
    name: str, accelerator: Accelerator, **changes: Any
) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor]:
    with accelerator.main_process_first():  # the others find what it downloaded
        folder, found = find_model(name)
        return load_model(as_captioner(folder, found), found, **changes)


def _config_of(name: str) -> CaptionerConfig:
    return CaptionerConfig.from_pretrained(as_captioner(*find_model(name)))


def _change_image_size(model: CaptionerForConditionalGeneration, image_size: int, name: str, say: Say) -> None:
    before = model.config.image_size
    if image_size == before:
        return
    try:
        change_image_size(model, image_size)
    except (ValueError, RuntimeError) as error:
        raise CaptionerError(f"model.image_size {image_size}: {name} has {before}: {error}") from error
    say(f"{name}: image size changed from {before} to {image_size} pixels")


def _take(
    model: CaptionerForConditionalGeneration,
    donor: CaptionerForConditionalGeneration,
    part: str,
    name: str,
    say: Say,
) -> None:
    """Copy the tensors of a part from another captioner where their shapes agree, and print how many did.

    Raises:
        CaptionerError: none did, so the two parts are of different kinds.
    """
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(part)}
    offered = {key: tensor for key, tensor in donor.state_dict().items() if key.startswith(part)}
    taken = {key: tensor for key, tensor in offered.items() if key in own and own[key].shape == tensor.shape}
    if not taken:
        raise CaptionerError(f"pretrained.{part.rstrip('.')}: nothing in {name} has the shape of this model's")
    model.load_state_dict(taken, strict=False)
    missing, unused = sorted(own.keys() - taken.keys()), sorted(offered.keys() - taken.keys())
    say(f"{part.rstrip('.')} from {name}: {len(taken)} tensors loaded; new: {_few(missing)}; not used: {_few(unused)}")


def _few(names: Sequence[str], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "nothing") + more


def _tokenizer(
    config: RunConfig, captions: Iterable[str], accelerator: Accelerator, last: Path | None
) -> CaptionerTokenizer:
    """The recipe's tokenizer, or one trained on the captions and kept in the output folder and in its checkpoints."""
    if config.tokenizer.path:
        folder = Path(config.tokenizer.path)
        if not (folder / "tokenizer.model").is_file():
            raise CaptionerError(f"tokenizer.path: {folder} holds no tokenizer.model")
        return CaptionerTokenizer(str(folder / "tokenizer.model"))
    if last is not None:
        return load_model(last, str(last))[1].tokenizer
    path = Path(config.output_dir) / "tokenizer.model"
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            train_tokenizer(captions, config.tokenizer, path)
    return CaptionerTokenizer(str(path))
