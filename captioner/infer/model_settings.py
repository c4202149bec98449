"""What the folder of a model says besides its weights, read without torch or transformers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from captioner.decoding.defaults import generation_defaults, options_with
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError
from captioner.infer.calibration import Calibration
from captioner.infer.tokenizer import Tokenizer, load_tokenizer
from captioner.model.preprocessing import Preprocessing


@dataclass(frozen=True)
class ModelSettings:
    """Settings of a model.

    Attributes:
        start, end: the tokens that begin and end every sequence.
        longest: most tokens of a caption, including its prefix and the end of sequence.
        tags, problem_type: what the tag head predicts; see `CaptionerConfig`.
        defaults: fields of `GenerationOptions` that the model's `generation_config.json` sets.
    """

    start: int
    end: int
    vocab_size: int
    longest: int
    tags: tuple[str, ...]
    problem_type: str | None
    defaults: Mapping[str, Any]
    preprocessing: Preprocessing
    tokenizer: Tokenizer
    calibration: Calibration | None

    def max_steps(self, options: GenerationOptions) -> int:
        """Return the most new tokens of a caption.

        Raises:
            CaptionerError: this model cannot do what the options ask for.
        """
        return options.max_steps(self.longest, self.vocab_size, self.end)


def read_settings(folder: Path) -> ModelSettings:
    """Read the settings in a model's folder.

    Raises:
        CaptionerError: a file is missing, cannot be read, or says what cannot be; the message names it.
    """
    with _reading(folder / "config.json") as config:
        start, end, vocab_size = (int(config[f]) for f in ("decoder_start_token_id", "eos_token_id", "vocab_size"))
        longest, tags = int(config["max_position_embeddings"]), tuple(config.get("tags", ()))
        if longest < 1:
            raise ValueError(f"max_position_embeddings {longest} leave no room for a caption")
        for token in (start, end):
            if token not in range(vocab_size):
                raise ValueError(f"token {token}; the model has those from 0 to {vocab_size - 1}")
    with _reading(folder / "processor_config.json") as processor:
        preprocessing = _preprocessing(processor["image_processor"])
    settings = ModelSettings(
        start=start,
        end=end,
        vocab_size=vocab_size,
        longest=longest,
        tags=tags,
        problem_type=config.get("problem_type"),
        defaults={},
        preprocessing=preprocessing,
        tokenizer=load_tokenizer(folder),
        calibration=Calibration.load(folder),
    )
    if (folder / "generation_config.json").is_file():
        with _reading(folder / "generation_config.json") as generation:
            settings = replace(settings, defaults=generation_defaults(generation))
            settings.max_steps(options_with(settings.defaults, {}))
    return settings


def _preprocessing(saved: dict[str, Any]) -> Preprocessing:
    """Read an image processor's settings in transformers' names, or in those of captioner 0.1."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not saved.get(step, True):
            raise ValueError(f"{step} is off, which captioner does not support")
    if "image_size" in saved:
        names = [field.name for field in fields(Preprocessing)]
        return Preprocessing(**{name: saved[name] for name in names if name in saved})
    height, width = saved["size"]["height"], saved["size"]["width"]
    if height != width:
        raise ValueError(f"size {saved['size']}: captioner's images are squares")
    return Preprocessing(
        image_size=height,
        resize_mode=saved.get("resize_mode", "crop"),
        crop_pct=saved.get("crop_pct", 1.0),
        interpolation=Image.Resampling(saved["resample"]).name.lower(),
        mean=tuple(saved["image_mean"]),
        std=tuple(saved["image_std"]),
    )


@contextmanager
def _reading(path: Path) -> Iterator[dict[str, Any]]:
    """Give a JSON file's content; say in one line what is wrong with it, in the block too."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        yield content
    except OSError as error:
        raise CaptionerError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise CaptionerError(f"{path}: without {error}") from error
    except (TypeError, ValueError, CaptionerError) as error:
        raise CaptionerError(f"{path}: {error}") from error
