"""The sections of a recipe and their keys. Unknown keys are errors."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

Objective = Literal["captioning", "reward", "tags", "contrastive", "distillation", "language_modeling"]
Part = Literal["trunk", "bridge", "embeddings", "decoder", "heads", "adapters"]

FROM_IMAGES: frozenset[Objective] = frozenset({"captioning", "reward", "tags", "contrastive", "distillation"})
FROM_WORDS: frozenset[Objective] = frozenset({"captioning", "reward", "contrastive", "language_modeling"})
TRAINED_BY: dict[Part, frozenset[Objective]] = {
    "trunk": FROM_IMAGES,
    "bridge": FROM_IMAGES,
    "embeddings": FROM_WORDS,
    "decoder": FROM_WORDS,
    "heads": frozenset({"tags", "contrastive", "distillation"}),
    "adapters": FROM_IMAGES | FROM_WORDS,
}
"""The parts of a captioner, and the objectives whose gradients reach each of them."""


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors, so that a misspelt key cannot train the wrong model for a day."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class SourceConfig(Section):
    """A source of samples; the path determines its layout (see `captioner.data.sources.layouts`)."""

    path: str = Field(
        min_length=1,
        description="A .json in Karpathy's or COCO's layout, a .jsonl, .csv, .tsv or .parquet table, .tar shards, a "
        "folder, or hf:NAME for `datasets`. Shards are one file, a range as in train-{0000..0031}.tar, or a glob.",
    )
    images: str | None = Field(
        None,
        min_length=1,
        description="The folder that image names are relative to; default: the folder of `path`, or images/ in it.",
    )
    split: str | None = Field(
        None,
        description="The split to read: Karpathy's, that of `datasets`, or a value in the column `split`. Required "
        "if there are several.",
    )
    streaming: bool = Field(
        False,
        description="`datasets` only: do not store the data set in the cache of `datasets`. Training writes the images "
        "to output_dir/streamed/*.tar, which may be deleted afterwards.",
    )
    captioned: bool = Field(True, description="false: use only the images, for tags or distillation.")
    image_column: str = Field("image", description="Column of images or their names; file_name is found without it.")
    caption_column: str = Field("caption", description="Column with a caption or a list of captions.")
    label_column: str | None = Field(None, description="Column with an image's class or tags, a string or a list.")
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often an epoch uses each image of this training source: 3 means three times, 0.5 means in "
        "every other epoch.",
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="What to do with missing images and malformed rows."
    )

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
        description="A source, or a list of sources. A phase uses the images that its objectives can learn from: with "
        "captions for captioning, also with labels for tags, all for distillation."
    )
    validation: Sources = Field(description="A source, or a list of sources that are scored together.")
    text: str | None = Field(None, description="A text file, one caption per line, for language_modeling.")
    captions_per_image: int = Field(5, ge=1, description="Captions per image and step; they share one encoder pass.")
    max_caption_tokens: int = Field(40, ge=2, description="Longer captions are truncated; the end of sequence is kept.")
    num_workers: int = Field(2, ge=0, description="Processes that load images; 0: the training process itself.")

    @property
    def train_sources(self) -> list[SourceConfig]:
        return self.train if isinstance(self.train, list) else [self.train]

    @property
    def validation_sources(self) -> list[SourceConfig]:
        return self.validation if isinstance(self.validation, list) else [self.validation]


class TokenizerConfig(Section):
    path: str | None = Field(None, description="A folder with a tokenizer.model; default: train one on the captions.")
    vocab_size: int = Field(4000, ge=8, le=1_000_000)
    model_type: Literal["unigram", "bpe", "char", "word"] = Field(
        "bpe", description="unigram splits many frequent words (and: a + nd), regardless of vocab_size."
    )
    lowercase: bool = True


class TagsConfig(Section):
    """The tags that the tag head learns: the data set's labels, the most frequent words of its captions, or both.

    With both, a tag counts as unknown for an image that lacks what it comes from: labels or captions.
    """

    source: Literal["labels", "captions", "both"] = "labels"
    num_words: int = Field(200, ge=2, description="How many words of the captions become tags.")
    problem_type: Literal["single_label_classification", "multi_label_classification"] = "multi_label_classification"
    loss: Literal["asymmetric", "binary_cross_entropy"] = Field(
        "asymmetric",
        description="For multi-label tags (asymmetric: Ridnik et al. 2021); single labels use cross-entropy.",
    )

    @model_validator(mode="after")
    def _require_multi_label_for_words(self) -> "TagsConfig":
        if self.source != "labels" and self.problem_type == "single_label_classification":
            raise ValueError(
                f"source {self.source} gives an image many tags: problem_type must be multi_label_classification"
            )
        return self


class TeacherConfig(Section):
    """A classifier whose predictions the encoder learns to reproduce (Hinton et al. 2015)."""

    name: str = Field(description="Any timm classifier.")
    weights: str | None = Field(None, description="A safetensors file with timm's names; default: timm's weights.")
    temperature: float = Field(2.0, gt=0)


class PretrainedConfig(Section):
    """Pretrained weights to start from: a whole captioner, or an encoder and a decoder. The rest is random.

    A captioner is `default` (the bundled one), a folder, a training's output folder or a Hub id. It determines the
    model's shape and its tokenizer.
    """

    captioner: str | None = Field(
        None, description="A captioner, for encoder and decoder; `pretrained: NAME` is short for this."
    )
    encoder: str | None = Field(
        None,
        description="A timm name with the tag of its weights (vit_small_patch16_224.augreg_in21k_ft_in1k), a "
        "safetensors file with timm's names, or a captioner.",
    )
    decoder: str | None = Field(None, description="A captioner; its decoder and tokenizer are used.")

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        return {"captioner": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _refuse_captioner_with_parts(self) -> "PretrainedConfig":
        if self.captioner and (self.encoder or self.decoder):
            raise ValueError(
                "a captioner has its own encoder and decoder: set either captioner, or encoder and decoder"
            )
        return self


class ModelConfig(Section):
    """The model to build: the fields of `CaptionerConfig` that a recipe may set."""

    encoder_name: str = Field("vit_small_patch16_224", description="Any timm model that returns a map or tokens.")
    encoder_kwargs: dict[str, Any] = Field(default_factory=dict, description="Passed to timm.create_model.")
    image_size: int = Field(224, ge=8, description="Height and width in pixels.")
    resize_mode: Literal["crop", "squash", "pad"] = Field(
        "crop", description="How photos become squares: crop the centre, squash, or pad with the mean colour."
    )
    crop_pct: float = Field(1.0, gt=0, le=1, description="Share of the sides that resize_mode crop or squash keeps.")
    encoder_pooling: int = Field(1, ge=1, description="Window of an average pooling over the token grid.")
    encoder_layers: int = Field(
        0, ge=0, description="Transformer layers over the trunk's tokens; on a CNN: a hybrid ViT."
    )
    hidden_size: int = Field(384, ge=8)
    num_hidden_layers: int = Field(3, ge=1)
    num_attention_heads: int = Field(6, ge=1)
    intermediate_size: int | None = Field(None, description="Default: 4 * hidden_size.")
    dropout: float = Field(0.1, ge=0, lt=1)
    max_position_embeddings: int = Field(64, ge=4)
    contrastive_size: int = Field(256, ge=1, description="Width of the embeddings for the objective contrastive.")
    gradient_checkpointing: bool = False


class AdaptersConfig(Section):
    """Low-rank adapters (LoRA, Hu et al. 2022, https://arxiv.org/abs/2106.09685), which phases train as `adapters`."""

    parts: list[Literal["trunk", "bridge", "decoder"]] = Field(["decoder"], min_length=1)
    rank: int = Field(8, ge=1, le=1024, description="Of each projection; a fused one has it for each of its own.")
    alpha: float = Field(16.0, gt=0, description="The update's scale is alpha / rank.")


class AugmentationConfig(Section):
    """Random crop, flip and colour. Flips are off by default because captions say "left" and "right"."""

    crop_scale: tuple[float, float] = Field((1.0, 1.0), description="Range of the area that a random crop keeps.")
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
    """Settings of the objective reward (see `captioner.training.rewards`)."""

    num_samples: int = Field(5, ge=2, description="Captions drawn for each image.")
    baseline: Literal["leave_one_out", "greedy"] = "leave_one_out"


class PhaseConfig(Section):
    """What is trained, with which losses, for how long. Parts that `learning_rates` does not name are frozen."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    epochs: int | None = Field(None, ge=1, description="Set either epochs or steps.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps; in a repeated group, steps of one turn.")
    learning_rates: dict[Part, float] = Field(
        description="Peak rate of each trained part: trunk (timm), bridge (projection and hybrid layers), decoder, "
        "embeddings (default: the decoder's rate; 0: frozen), heads, adapters (low-rank updates of other parts)."
    )
    trunk_blocks: int | None = Field(
        None, ge=1, description="Train only so many of the last trunk blocks; default: all."
    )
    layer_decay: float = Field(1.0, gt=0, le=1, description="Rate of a trunk block relative to the block above it.")
    objectives: dict[Objective, float] = Field(
        {"captioning": 1.0},
        description="Weight of each loss: captioning (cross-entropy), reward (CIDEr-D of drawn captions), tags, "
        "contrastive, distillation, language_modeling (on data.text; not with others).",
    )
    batch_size: int | None = Field(None, ge=1, description="Default: optimization.batch_size.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout of bridge and decoder; default: the model's.")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    word_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the decoder's input tokens that are hidden.")
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    final_rate_fraction: float = Field(0.0, ge=0, le=1, description="Final rate of the cosine, relative to the peak.")
    reward: RewardConfig = Field(default_factory=RewardConfig)
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)

    @field_validator("objectives")
    @classmethod
    def _require_objectives(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(weight <= 0 for weight in value.values()):
            raise ValueError("needs at least one objective, each with a weight above 0; omit the others")
        return value

    @field_validator("learning_rates")
    @classmethod
    def _require_rates(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(rate <= 0 for part, rate in value.items() if part != "embeddings" or rate < 0):
            raise ValueError("needs at least one part, each with a rate above 0; omit the parts to freeze")
        return value

    @model_validator(mode="after")
    def _require_epochs_or_steps(self) -> "PhaseConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set either epochs or steps")
        return self

    @model_validator(mode="after")
    def _require_objectives_for_parts(self) -> "PhaseConfig":
        for part in self.learning_rates:
            if not TRAINED_BY[part] & self.objectives.keys():
                raise ValueError(f"learning_rates: no objective of the phase reaches {part}")
        if "language_modeling" in self.objectives and len(self.objectives) > 1:
            raise ValueError("objectives: language_modeling has no images, so it cannot be combined with others")
        return self

    @model_validator(mode="after")
    def _require_trunk_for_its_options(self) -> "PhaseConfig":
        if "trunk" not in self.learning_rates and (self.trunk_blocks is not None or self.layer_decay != 1.0):
            raise ValueError("trunk_blocks and layer_decay need a learning rate for trunk")
        return self

    @model_validator(mode="after")
    def _refuse_word_dropout_with_rewards(self) -> "PhaseConfig":
        if "reward" in self.objectives and self.word_dropout > 0:
            raise ValueError(
                "word_dropout cannot be used with the objective reward, whose captions were drawn without it"
            )
        return self


class PhaseGroup(Section):
    """Alternation: phases that repeat in turn. A phase's rate follows one schedule through all its turns."""

    repeat: int = Field(ge=2)
    phases: list[PhaseConfig] = Field(min_length=1)


# Tags that pydantic puts into the location of an error, and the section that each stands for.
KINDS: dict[Any, type[Section]] = {
    "<phase>": PhaseConfig,
    "<group>": PhaseGroup,
    "<source>": SourceConfig,
    "<sources>": SourceConfig,
}


def _kind_of_phase(item: Any) -> str:
    return "<group>" if isinstance(item, PhaseGroup) or (isinstance(item, dict) and "repeat" in item) else "<phase>"


class Stretch(NamedTuple):
    """One epoch of a phase, or one turn of a phase counted in steps; `number` counts from 0 to `total` - 1."""

    phase: PhaseConfig
    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.phase.name} {self.number + 1}/{self.total}"


class OptimizationConfig(Section):
    batch_size: int = Field(32, ge=1, description="Images per step and process.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Default: the launcher's, or 1.")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1, description="Validate and save a moving average of the weights.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Default: the launcher's, or no.")
    compile: bool = Field(False, description="Use torch.compile; it takes a minute or two at the start of a phase.")


class ValidationConfig(Section):
    batch_size: int = Field(32, ge=1)
    max_images: int | None = Field(None, ge=1, description="Use only the first images, so many; default: all.")
    every_steps: int | None = Field(
        None, ge=1, description="Steps between validations; default: validate after each epoch, or turn of a phase."
    )
    patience: int | None = Field(
        None, ge=1, description="End a phase after so many validations without a better score; default: never."
    )
    num_beams: int = Field(1, ge=1)
    metric: Literal["CIDEr", "CIDEr_D", "Bleu_4", "ROUGE_L"] = Field(
        "CIDEr", description="Selects the best checkpoint."
    )
    samples: int = Field(8, ge=0, description="Photos shown with their captions at each validation and in report.html.")


class RunConfig(Section):
    output_dir: str
    seed: int = 0
    data: DataConfig
    pretrained: PretrainedConfig = Field(default_factory=PretrainedConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    tags: TagsConfig | None = None
    teacher: TeacherConfig | None = None
    adapters: AdaptersConfig | None = None
    phases: list[
        Annotated[
            Annotated[PhaseConfig, Tag("<phase>")] | Annotated[PhaseGroup, Tag("<group>")],
            Discriminator(_kind_of_phase),
        ]
    ] = Field(
        min_length=1, description="Phases in order; {repeat: n, phases: [...]} repeats its phases in turn, n times."
    )
    optimization: OptimizationConfig = Field(default_factory=OptimizationConfig)
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    checkpoint_every_steps: int = Field(200, ge=1, description="Steps between checkpoints, apart from each epoch's.")
    push_to_hub: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Publish each new best checkpoint as owner/name on the Hugging Face Hub, privately.",
    )
    log_with: list[
        Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
    ] = Field(default_factory=list, description="Trackers that Accelerate reports to, besides log.jsonl.")

    @model_validator(mode="after")
    def _require_distinct_names(self) -> "RunConfig":
        names = [phase.name for _, phases in self._groups() for phase in phases]
        if len(set(names)) != len(names):
            raise ValueError("phases: every phase needs a different name")
        return self

    @model_validator(mode="after")
    def _require_adapters_to_be_trained(self) -> "RunConfig":
        trained = any("adapters" in phase.learning_rates for _, phases in self._groups() for phase in phases)
        if trained != (self.adapters is not None):
            raise ValueError("adapters: a phase's learning rate for adapters and the key adapters need each other")
        return self

    @model_validator(mode="after")
    def _refuse_settings_of_pretrained(self) -> "RunConfig":
        own = {"dropout", "gradient_checkpointing", "contrastive_size", "image_size"}
        given = [f"model.{name}" for name in sorted(self.model.model_fields_set - own)]
        tokenizer = [f"tokenizer.{name}" for name in sorted(self.tokenizer.model_fields_set)]
        if self.pretrained.decoder and tokenizer:
            raise ValueError(f"a pretrained decoder has its own {', '.join(tokenizer)}: omit one or the other")
        given += tokenizer
        if self.pretrained.captioner and given:
            raise ValueError(f"a pretrained captioner has its own {', '.join(given)}: omit one or the other")
        return self

    @model_validator(mode="after")
    def _require_positions_for_captions(self) -> "RunConfig":
        longest, positions = self.data.max_caption_tokens, self.model.max_position_embeddings
        if longest > positions and not self.pretrained.captioner:
            raise ValueError(f"data.max_caption_tokens {longest} is above model.max_position_embeddings {positions}")
        return self

    @model_validator(mode="after")
    def _require_keys_of_objectives(self) -> "RunConfig":
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
        """Return the stretches of the training in order."""
        return [
            Stretch(phase, turn * (phase.epochs or 1) + epoch, turns * (phase.epochs or 1))
            for turns, phases in self._groups()
            for turn in range(turns)
            for phase in phases
            for epoch in range(phase.epochs or 1)
        ]

    def _groups(self) -> list[tuple[int, list[PhaseConfig]]]:
        return [(item.repeat, item.phases) if isinstance(item, PhaseGroup) else (1, [item]) for item in self.phases]
