"""A checkpoint's image processor and tokenizer as the captioner's."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.processors import TemplateProcessing
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from captioner.errors import CaptionerError
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.preprocessing import RESAMPLING, Preprocessing
from captioner.model.processing_captioner import CaptionerImageProcessor

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")

CLEANED_UP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}
"""Spaces that transformers takes out of decoded text where a tokenizer has `clean_up_tokenization_spaces`."""


def image_processor(folder: Path, image_size: int) -> CaptionerImageProcessor:
    """Read the checkpoint's preprocessing.

    Raises:
        CaptionerError: there is none, or a captioner cannot do what it says.
    """
    _require(folder, "preprocessor_config.json", "processor_config.json")
    settings = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
    steps = all(settings.get(step) for step in ("do_resize", "do_rescale", "do_normalize"))
    if not steps or not math.isclose(settings["rescale_factor"], 1 / 255, rel_tol=1e-6):
        raise CaptionerError("its image processor does not resize, rescale by 1/255 and normalize")
    mode, whole, seen = _sizes(settings)
    if seen != image_size:
        raise CaptionerError(f"its image processor makes images of {seen} pixels, its encoder takes {image_size}")
    preprocessing = Preprocessing(
        image_size=image_size,
        resize_mode=mode,
        crop_pct=image_size / whole,
        interpolation={int(value): name for name, value in RESAMPLING.items()}[settings["resample"]],
        mean=settings["image_mean"],
        std=settings["image_std"],
    )
    return CaptionerImageProcessor(**asdict(preprocessing))


def _sizes(settings: dict[str, Any]) -> tuple[str, int, int]:
    """The mode of resizing, and the side of images when they are resized and in the end."""
    size = {key: value for key, value in settings["size"].items() if value is not None}
    crop = settings["crop_size"] if settings.get("do_center_crop") else size
    if size.keys() == {"shortest_edge"} and crop.get("height") == crop.get("width") is not None:
        return "scale_then_crop", size["shortest_edge"], crop["height"]
    if size.get("height") != size.get("width") or crop.get("height") != crop.get("width") or "height" not in crop:
        raise CaptionerError(f"its image processor makes {crop} of {size}, which is not square")
    return "squash" if crop == size else "squash_then_crop", size["height"], crop["height"]


def tokenizer(folder: Path, part: PreTrainedConfig, config: CaptionerConfig) -> PreTrainedTokenizerFast:
    """Read the checkpoint's tokenizer, which then appends the end of sequence, as training needs, and encodes text that
    looks like a special token as text.

    Args:
        part: the configuration that transformers finds the tokenizer's class by.
        config: the captioner's, whose special tokens it has to have. A start that comes right after its last token is
            added: BLIP's decoder has one that BERT's tokenizer lacks.

    Raises:
        CaptionerError: there is none, or it does not go with the decoder.
    """
    _require(folder, *TOKENIZER_FILES)
    original = AutoTokenizer.from_pretrained(folder, config=part, local_files_only=True, trust_remote_code=False)
    if not isinstance(original, PreTrainedTokenizerFast):
        raise CaptionerError(f"its tokenizer, {type(original).__name__}, is not one of the tokenizers library")
    backend = original.backend_tokenizer
    if config.bos_token_id == len(original):
        backend.add_special_tokens([AddedToken("[DEC]", special=True)])
    if backend.get_vocab_size() > config.vocab_size:
        raise CaptionerError(f"its tokenizer has {len(original)} tokens, its decoder {config.vocab_size}")
    ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
    pad, start, end = (backend.id_to_token(index) for index in ids)
    if pad is None or start is None or end is None:
        raise CaptionerError(f"its tokenizer does not have all of the tokens {ids}: padding, start and end")
    backend.add_special_tokens([pad, start, end])  # some files have them as ordinary words
    backend.post_processor = TemplateProcessing(single=["$A", end], special_tokens=[(end, config.eos_token_id)])
    if original.clean_up_tokenization_spaces and type(backend.model).__name__ != "BPE":
        _clean_up(backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=start, eos_token=end, split_special_tokens=True
    )


def _clean_up(backend: Tokenizer) -> None:
    """Have the decoder itself clean up, so that exported models do so without transformers."""
    steps = [decoders.Replace(spaced, tight) for spaced, tight in CLEANED_UP.items()]
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Fuse(), *steps])


def _require(folder: Path, *files: str) -> None:
    """Check that the folder has one of these files; transformers makes up a tokenizer if there is none.

    Raises:
        CaptionerError: it has none of them.
    """
    if not any((folder / file).is_file() for file in files):
        raise CaptionerError(f"there is no {' or '.join(files)} in it")
