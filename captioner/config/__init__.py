"""The typed recipe of a training (`recipe`), and how it is read from YAML and overrides (`reading`)."""

from captioner.config.reading import load_config, validated
from captioner.config.recipe import (
    TRAINED_BY,
    AdaptersConfig,
    AugmentationConfig,
    DataConfig,
    Objective,
    OptimizationConfig,
    Part,
    PhaseConfig,
    RewardConfig,
    RunConfig,
    SourceConfig,
    Stretch,
    TagsConfig,
    TeacherConfig,
    TokenizerConfig,
)

__all__ = [
    "TRAINED_BY",
    "AdaptersConfig",
    "AugmentationConfig",
    "DataConfig",
    "Objective",
    "OptimizationConfig",
    "Part",
    "PhaseConfig",
    "RewardConfig",
    "RunConfig",
    "SourceConfig",
    "Stretch",
    "TagsConfig",
    "TeacherConfig",
    "TokenizerConfig",
    "load_config",
    "validated",
]
