"""Trains a SentencePiece tokenizer on captions in any script."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from captioner.config import TokenizerConfig
from captioner.errors import CaptionerError
from captioner.files import check_file, reporting, whole_file
from captioner.model.caption_cleaning import clean_caption


def train_tokenizer(captions: Iterable[str], config: TokenizerConfig, path: Path) -> None:
    """Write a SentencePiece model to `path`, and create its folder; pad, start, end and unknown have ids 0, 1, 2, 3.

    Every character of the captions gets a piece and unseen characters fall back to bytes, so that any text survives
    encoding and decoding, up to NFKC normalisation (and case, with `lowercase`). Few captions give fewer pieces than
    `vocab_size`.

    Raises:
        CaptionerError: there are no captions, they have more characters than `vocab_size`, or `path` is not writable.
    """
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    check_file(path)
    sentences = [cleaned for caption in captions if (cleaned := clean_caption(caption))]
    if not sentences:
        raise CaptionerError("the tokenizer has no captions to learn from")
    model = io.BytesIO()
    byte_fallback = config.model_type in ("unigram", "bpe")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model_type,
            character_coverage=1.0,
            byte_fallback=byte_fallback,
            normalization_rule_name="nmt_nfkc_cf" if config.lowercase else "nmt_nfkc",
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            hard_vocab_limit=False,
            max_sentence_length=16_384,
            num_threads=1,  # the result must not depend on the machine
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rpartition("] ")[2]  # drop the location in SentencePiece's sources
        raise CaptionerError(f"a vocabulary of {config.vocab_size} pieces cannot be trained: {reason}") from error
    with whole_file(path) as file:
        file.buffer.write(model.getvalue())
