"""Trains the SentencePiece tokenizer on captions, in whatever script they are."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from captioner.config import TokenizerConfig
from captioner.errors import CaptionerError
from captioner.files import check_file, reporting, whole_file
from captioner.model.caption_cleaning import clean_caption


def train_tokenizer(captions: Iterable[str], config: TokenizerConfig, path: Path) -> None:
    """Write a SentencePiece model to `path`; the ids of padding, start, end and unknown are 0, 1, 2 and 3.

    Every character of the captions gets a piece, and bytes stand in for characters never seen, so that any text
    survives encoding and decoding up to NFKC normalisation (and case, where `lowercase`).

    Raises:
        CaptionerError: no captions, or more characters in them than `vocab_size` holds. (Of too few captions fewer
            pieces are made than `vocab_size`.) Or `path`, whose folder is made, cannot be written.
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
            num_threads=1,  # the pieces do not depend on the machine
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rpartition("] ")[2]  # what went wrong, after where in SentencePiece's sources
        raise CaptionerError(f"a vocabulary of {config.vocab_size} pieces cannot be trained: {reason}") from error
    with whole_file(path) as file:
        file.buffer.write(model.getvalue())
