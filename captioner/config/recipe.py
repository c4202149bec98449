"""The run config: a YAML recipe plus `key=value` overrides, typed, with nothing unknown let through."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from captioner.errors import CaptionerError

Objective = Literal["captioning", "reward", "tags", "contrastive", "distillation", "language_modeling"]
Part = Literal["trunk", "bridge", "embeddings", "decoder", "heads"]

FROM_IMAGES: frozenset[Objective] = frozenset({"captioning", "reward", "tags", "contrastive", "distillation"})
FROM_WORDS: frozenset[Objective] = frozenset({"captioning", "reward", "contrastive", "language_modeling"})
TEACHES: dict[Part, frozenset[Objective]] = {
    "trunk": FROM_IMAGES,
    "bridge": FROM_IMAGES,
    "embeddings": FROM_WORDS,
    "decoder": FROM_WORDS,
    "heads": frozenset({"tags", "contrastive", "distillation"}),
}
"""The parts of a captioner, and the objectives whose gradient reaches each."""


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors: a misspelt key must not train the wrong model for a day."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


class SourceConfig(Section):
    """Where samples come from; its layout follows from the path (see `captioner.data.sources.layouts`)."""

    path: str = Field(
        min_length=1,
        description="A Karpathy or COCO .json, .jsonl, .csv, .tsv, .parquet, .tar shards, a folder, or hf:NAME for "
        "`datasets`. Shards are one .tar, a range as in train-{0000..0031}.tar, or a glob.",
    )
    images: str | None = Field(
        None,
        min_length=1,
        description="Folder that relative image names start from; default: beside `path`, or images/ there.",
    )
    split: str | None = Field(
        None, description="Karpathy or `datasets` split, or value of a `split` column; needed where there are several."
    )
    streaming: bool = Field(
        False,
        description="`datasets` only: read as it arrives, without a copy in the cache. Training keeps the encoded "
        "images in a shard that all its processes share, output_dir/streamed/*.tar; it may be deleted afterwards.",
    )
    captioned: bool = Field(True, description="false: images alone, to classify or distil; captions go unread.")
    image_column: str = Field("image", description="Of tables: image or its name; file_name is found without asking.")
    caption_column: str = Field("caption", description="Of tables: a caption, or a list of captions.")
    label_column: str | None = Field(None, description="Class or tags of an image, a string or a list; default: none.")
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often an epoch draws each image of this training source: 3 takes it three times, 0.5 every "
        "other epoch.",
    )
    on_error: Literal["raise", "skip"] = Field("raise", description="What a missing image or malformed row costs.")

    @model_validator(mode="after")
    def _only_datasets_stream(self) -> "SourceConfig":
        if self.streaming and not self.path.startswith("hf:"):
            raise ValueError("streaming needs a path of the form hf:NAME")
        return self


def _kind_of_sources(value: Any) -> str:
    return "<sources>" if isinstance(value, list) else "<source>"


Sources = Annotated[
    Annotated[SourceConfig, Tag("<source>")] | Annotated[list[SourceConfig], Field(min_length=1), Tag("<sources>")],
    Discriminator(_kind_of_sources),
]


class DataConfig(Section):
    train: Sources = Field(
        description="A source, or a list of them. A phase takes the images that its objectives can use: captioning "
        "those with captions, tags also those with labels, distillation all."
    )
    validation: Sources = Field(description="A source, or a list of them, scored together.")
    text: str | None = Field(None, description="A text file, a caption a line, for phases of language_modeling.")
    captions_per_image: int = Field(5, ge=1, description="Captions decoded against one encoder pass.")
    max_caption_tokens: int = Field(40, ge=2, description="Longer captions are cut, end-of-sequence kept.")
    num_workers: int = Field(2, ge=0)

    @property
    def train_sources(self) -> list[SourceConfig]:
        return self.train if isinstance(self.train, list) else [self.train]

    @property
    def validation_sources(self) -> list[SourceConfig]:
        return self.validation if isinstance(self.validation, list) else [self.validation]


class TokenizerConfig(Section):
    path: str | None = Field(None, description="A folder with a trained tokenizer; default: train one on the captions.")
    vocab_size: int = Field(4000, ge=8, le=1_000_000)
    model_type: Literal["unigram", "bpe", "char", "word"] = Field(
        "bpe", description="unigram splits many frequent words (and: a + nd), whatever vocab_size."
    )
    lowercase: bool = True


class TagsConfig(Section):
    """What the tag head learns to name: the data set's labels, the most frequent words of its captions, or both.

    With both, an image that has captions alone says nothing of tags that only labels name, and the other way round.
    """

    source: Literal["labels", "captions", "both"] = "labels"
    num_words: int = Field(200, ge=2, description="Of captions: how many words become tags.")
    problem_type: Literal["single_label_classification", "multi_label_classification"] = "multi_label_classification"
    loss: Literal["asymmetric", "binary_cross_entropy"] = Field(
        "asymmetric", description="Of multi-label tags (Ridnik et al. 2021); a single label has cross-entropy."
    )

    @model_validator(mode="after")
    def _captions_have_many_words(self) -> "TagsConfig":
        if self.source != "labels" and self.problem_type == "single_label_classification":
            raise ValueError(
                f"source {self.source} gives an image many tags: problem_type is multi_label_classification"
            )
        return self


class TeacherConfig(Section):
    """A classifier whose judgement of the photos the encoder learns to repeat (Hinton et al. 2015)."""

    name: str = Field(description="Any timm classifier.")
    weights: str | None = Field(None, description="A safetensors file in timm's naming; default: timm's own.")
    temperature: float = Field(2.0, gt=0)


class PretrainedConfig(Section):
    """What the training starts from: a captioner as a whole, or an encoder and a decoder apart. All else is random.

    A captioner is `default` (the bundled one), a folder, a training's folder or a Hub id; it brings its shape and its
    tokenizer.
    """

    captioner: str | None = Field(
        None, description="A captioner, encoder and decoder; `pretrained: NAME` says the same."
    )
    encoder: str | None = Field(
        None,
        description="A timm name with its weights' tag (vit_small_patch16_224.augreg_in21k_ft_in1k), a safetensors "
        "file in timm's naming, or a captioner.",
    )
    decoder: str | None = Field(None, description="A captioner, whose decoder and tokenizer are taken.")

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_captioner(cls, value: Any) -> Any:
        return {"captioner": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _whole_or_apart(self) -> "PretrainedConfig":
        if self.captioner and (self.encoder or self.decoder):
            raise ValueError("a captioner brings its own encoder and decoder: name either it or them")
        return self


class ModelConfig(Section):
    """What is built; the fields of `CaptionerConfig` that a recipe may set."""

    encoder_name: str = Field("vit_small_patch16_224", description="Any timm model that gives a feature map or tokens.")
    encoder_kwargs: dict[str, Any] = Field(default_factory=dict, description="Passed to timm.create_model.")
    image_size: int = Field(224, ge=8)
    resize_mode: Literal["crop", "squash", "pad"] = "crop"
    crop_pct: float = Field(1.0, gt=0, le=1, description="Share of a side that resize_mode crop or squash keeps.")
    encoder_pooling: int = Field(1, ge=1, description="Average-pool the token grid by this window.")
    encoder_layers: int = Field(0, ge=0, description="Transformer layers over the trunk's feature map (a hybrid ViT).")
    hidden_size: int = Field(384, ge=8)
    num_hidden_layers: int = Field(3, ge=1)
    num_attention_heads: int = Field(6, ge=1)
    intermediate_size: int | None = Field(None, description="Default: 4 * hidden_size.")
    dropout: float = Field(0.1, ge=0, lt=1)
    max_position_embeddings: int = Field(64, ge=4)
    contrastive_size: int = Field(256, ge=1, description="Width of the space of images and captions, where one learns.")
    gradient_checkpointing: bool = False


class AugmentationConfig(Section):
    """Random crop, flip and colour. Flips are off by default: captions say "left"."""

    crop_scale: tuple[float, float] = Field((1.0, 1.0), description="Area kept by a random resized crop.")
    horizontal_flip: float = Field(0.0, ge=0, le=1)
    color_jitter: float = Field(0.0, ge=0, le=1)

    @field_validator("crop_scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("needs 0 < low <= high <= 1")
        return value

    @property
    def active(self) -> bool:
        return self.crop_scale != (1.0, 1.0) or self.horizontal_flip > 0 or self.color_jitter > 0


class RewardConfig(Section):
    """How captions are drawn and judged where a phase trains on rewards (see `captioner.train.rewards`)."""

    num_samples: int = Field(5, ge=2, description="Captions drawn for an image.")
    baseline: Literal["leave_one_out", "greedy"] = "leave_one_out"


class PhaseConfig(Section):
    """Who learns what, for how long. A part that `learning_rates` does not name rests."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    epochs: int | None = Field(None, ge=1, description="Either epochs, or steps.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps; in a repeated group, those of one turn.")
    learning_rates: dict[Part, float] = Field(
        description="Peak rate of each part that learns: trunk (timm), bridge (projection and hybrid layers), decoder, "
        "embeddings (default: the decoder's rate; 0: they rest), heads."
    )
    trunk_blocks: int | None = Field(None, ge=1, description="Only the last k trunk blocks learn; default: all.")
    layer_decay: float = Field(1.0, gt=0, le=1, description="Rate of a trunk block relative to the one above it.")
    objectives: dict[Objective, float] = Field(
        {"captioning": 1.0},
        description="Weights: captioning (cross-entropy), reward (CIDEr-D of drawn captions), tags, contrastive, "
        "distillation, language_modeling (data.text, alone).",
    )
    batch_size: int | None = Field(None, ge=1, description="Default: optimization.batch_size.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Of bridge and decoder. Default: the model's.")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    word_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the words so far hidden from the decoder.")
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    final_rate_fraction: float = Field(0.0, ge=0, le=1, description="Where the cosine ends, relative to the peak.")
    reward: RewardConfig = Field(default_factory=RewardConfig)
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)

    @field_validator("objectives")
    @classmethod
    def _something_is_learnt(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(weight <= 0 for weight in value.values()):
            raise ValueError("needs at least one objective, each with a weight above 0; leave out the others")
        return value

    @field_validator("learning_rates")
    @classmethod
    def _someone_learns(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(rate <= 0 for part, rate in value.items() if part != "embeddings" or rate < 0):
            raise ValueError("needs at least one part, each with a rate above 0; leave out the parts that rest")
        return value

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> "PhaseConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a phase has either epochs or steps")
        return self

    @model_validator(mode="after")
    def _what_learns_is_taught(self) -> "PhaseConfig":
        for part in self.learning_rates:
            if not TEACHES[part] & self.objectives.keys():
                raise ValueError(f"learning_rates: no objective of the phase reaches {part}")
        if "language_modeling" in self.objectives and len(self.objectives) > 1:
            raise ValueError("objectives: language_modeling has no images, so it goes alone")
        return self

    @model_validator(mode="after")
    def _trunk_options_need_the_trunk(self) -> "PhaseConfig":
        if "trunk" not in self.learning_rates and (self.trunk_blocks is not None or self.layer_decay != 1.0):
            raise ValueError("trunk_blocks and layer_decay need a learning rate for trunk")
        return self

    @model_validator(mode="after")
    def _rewards_go_without_noise(self) -> "PhaseConfig":
        if "reward" in self.objectives and self.word_dropout > 0:
            raise ValueError("word_dropout does not go with the objective reward, which sees captions as it drew them")
        return self


class PhaseGroup(Section):
    """Phases in turn, again and again: alternation. A phase's rate follows one schedule through all its turns."""

    repeat: int = Field(ge=2)
    phases: list[PhaseConfig] = Field(min_length=1)


# How the checker marks, in the place of an error, which kind of section a value was taken for.
KINDS: dict[Any, type[Section]] = {
    "<phase>": PhaseConfig,
    "<group>": PhaseGroup,
    "<source>": SourceConfig,
    "<sources>": SourceConfig,
}


def _kind_of_phase(item: Any) -> str:
    return "<group>" if isinstance(item, PhaseGroup) or (isinstance(item, dict) and "repeat" in item) else "<phase>"


class Stretch(NamedTuple):
    """An epoch of a phase, or the steps of one turn: its number among all that the phase has, from 0, of how many."""

    phase: PhaseConfig
    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.phase.name} {self.number + 1}/{self.total}"


class OptimizationConfig(Section):
    batch_size: int = Field(32, ge=1, description="Images a step and process.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Default: the launcher's, or 1.")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1, description="Validate and save an exponential moving average.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Default: the launcher's, or no.")
    compile: bool = Field(False, description="torch.compile the model: a minute or two as a phase begins.")


class ValidationConfig(Section):
    batch_size: int = Field(32, ge=1)
    max_images: int | None = Field(None, ge=1, description="Use only the first images; default: all.")
    every_steps: int | None = Field(
        None, ge=1, description="Default: after each epoch, or each turn of a phase's steps."
    )
    patience: int | None = Field(
        None, ge=1, description="A phase ends after this many validations without a better score; default: never."
    )
    num_beams: int = Field(1, ge=1)
    metric: Literal["CIDEr", "CIDEr_D", "Bleu_4", "ROUGE_L"] = Field("CIDEr", description="Picks the best checkpoint.")
    samples: int = Field(8, ge=0, description="Photos shown, with captions, at each validation and on the page.")


class RunConfig(Section):
    output_dir: str
    seed: int = 0
    data: DataConfig
    pretrained: PretrainedConfig = Field(default_factory=PretrainedConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    tags: TagsConfig | None = None
    teacher: TeacherConfig | None = None
    phases: list[
        Annotated[
            Annotated[PhaseConfig, Tag("<phase>")] | Annotated[PhaseGroup, Tag("<group>")],
            Discriminator(_kind_of_phase),
        ]
    ] = Field(min_length=1, description="Phases in order; {repeat: n, phases: [...]} takes its phases in turn n times.")
    optimization: OptimizationConfig = Field(default_factory=OptimizationConfig)
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    checkpoint_every_steps: int = Field(200, ge=1, description="Last checkpoint, besides the one after each epoch.")
    log_with: list[
        Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
    ] = Field(default_factory=list, description="Trackers that Accelerate reports to, besides log.jsonl.")

    @model_validator(mode="after")
    def _names_differ(self) -> "RunConfig":
        names = [phase.name for _, phases in self._groups() for phase in phases]
        if len(set(names)) != len(names):
            raise ValueError("phases: names must differ")
        return self

    @model_validator(mode="after")
    def _a_pretrained_captioner_brings_its_own_shape(self) -> "RunConfig":
        own = {"dropout", "gradient_checkpointing", "contrastive_size", "image_size"}
        given = [f"model.{name}" for name in sorted(self.model.model_fields_set - own)]
        tokenizer = [f"tokenizer.{name}" for name in sorted(self.tokenizer.model_fields_set)]
        if self.pretrained.decoder and tokenizer:
            raise ValueError(f"a pretrained decoder brings its own {', '.join(tokenizer)}: leave out one or the other")
        given += tokenizer
        if self.pretrained.captioner and given:
            raise ValueError(f"a pretrained captioner brings its own {', '.join(given)}: leave out one or the other")
        return self

    @model_validator(mode="after")
    def _captions_fit_the_decoder(self) -> "RunConfig":
        longest, positions = self.data.max_caption_tokens, self.model.max_position_embeddings
        if longest > positions and not self.pretrained.captioner:
            raise ValueError(f"data.max_caption_tokens {longest} is above model.max_position_embeddings {positions}")
        return self

    @model_validator(mode="after")
    def _objectives_have_what_they_need(self) -> "RunConfig":
        needs = {"tags": self.tags, "distillation": self.teacher, "language_modeling": self.data.text}
        names = {"tags": "tags", "distillation": "teacher", "language_modeling": "data.text"}
        for objective, found in needs.items():
            if found is None and self.uses(objective):
                raise ValueError(f"the objective {objective} needs the key {names[objective]}")
        return self

    def uses(self, objective: str) -> bool:
        """Does any phase have this objective?"""
        return any(objective in phase.objectives for _, phases in self._groups() for phase in phases)

    def schedule(self) -> list[Stretch]:
        """Every stretch of the training, in order."""
        return [
            Stretch(phase, turn * (phase.epochs or 1) + epoch, turns * (phase.epochs or 1))
            for turns, phases in self._groups()
            for turn in range(turns)
            for phase in phases
            for epoch in range(phase.epochs or 1)
        ]

    def _groups(self) -> list[tuple[int, list[PhaseConfig]]]:
        return [(item.repeat, item.phases) if isinstance(item, PhaseGroup) else (1, [item]) for item in self.phases]


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe, apply `a.b.0.c=value` overrides (in YAML), expand `${VARIABLES}`, check every key and type.

    Of two overrides of one key the later wins; two equal keys in the file, or within one override, are an error.

    Raises:
        CaptionerError: the file is missing or not YAML, a mapping has a key twice, a key is unknown (with the nearest
            valid name), a value has the wrong type, a variable is not set; the message names the file and the key.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise CaptionerError(f"{path}: no such recipe" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    try:
        tree = _load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CaptionerError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise CaptionerError(f"{path}: {error.strerror}") from error
    if not isinstance(tree, dict):
        raise CaptionerError(f"{path}: a recipe is a mapping of keys to values")
    for override in overrides or []:
        _apply_override(tree, override)
    return validated(RunConfig, _expand_variables(tree, str(path)), str(path))


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys and says nothing; here a mapping has a key once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":  # merges may be several
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                raise CaptionerError(
                    f"{self.name}: the key {key.value!r} is in line {first[key.value]} and in line {line}"
                )
            first[key.value] = line
        return node


def _load_yaml(text: str, where: str) -> Any:
    loader = _Loader(text)
    loader.name = where
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def validated(section: type[AnySection], values: dict[str, Any], where: str) -> AnySection:
    """A section made of `values`.

    Raises:
        CaptionerError: a key is unknown or a value has the wrong type; the message starts with `where` and the key.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise CaptionerError("\n".join(_explain(problem, section, where) for problem in error.errors())) from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise CaptionerError(f"override {override!r}: write key=value, for example optimization.batch_size=16")
    node: Any = tree
    *parents, last = key.split(".")
    for name in parents:
        node = _child(node, name, override)
    try:
        parsed = _load_yaml(value, f"override {override!r}")
    except yaml.YAMLError as error:
        raise CaptionerError(f"override {override!r}: the value is not YAML") from error
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise CaptionerError(f"override {override!r}: {'.'.join(parents)} is a value, nothing lies below it")


def _child(node: Any, name: str, override: str) -> Any:
    if isinstance(node, list):
        if not name.isdecimal() or int(name) >= len(node):
            raise CaptionerError(f"override {override!r}: {name!r} is not an index below {len(node)}")
        return node[int(name)]
    if not isinstance(node, dict):
        raise CaptionerError(f"override {override!r}: {name!r} lies below a value")
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _expand_variables(node: Any, where: str) -> Any:
    if isinstance(node, dict):
        return {key: _expand_variables(value, where) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand_variables(value, where) for value in node]
    if not isinstance(node, str):
        return node
    for name in re.findall(r"\$\{(\w+)\}", node):
        if name not in os.environ:
            raise CaptionerError(f"{where}: the environment variable {name} is not set (used in {node!r})")
    return re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], node)


def _explain(problem: Any, section: type[Section], where: str) -> str:
    location = [part for part in problem["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in location if part not in KINDS)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _valid_names(section, location[:-1]), 1, cutoff=0.5)
        return f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if problem["type"] == "missing":
        return f"{where}: the key {key!r} is required"
    return f"{where}: {key}: {problem['msg']} (given: {problem['input']!r})" if key else f"{where}: {problem['msg']}"


def _valid_names(section: Any, location: list[Any]) -> list[str]:
    for part in location:
        if part in KINDS:
            section = KINDS[part]
        elif not isinstance(part, int):
            annotation = section.model_fields[part].annotation
            section = annotation.__args__[0] if getattr(annotation, "__origin__", None) is list else annotation
    return list(section.model_fields)
