"""Tokens of an exported model as words, without transformers."""

from pathlib import Path

from captioner.hub.load import load_model
from captioner.infer.tokenizer import load_tokenizer


def test_words_are_spelled_as_the_models_own_tokenizer_spells_them(tiny_captioner: Path):
    ours, theirs = load_tokenizer(tiny_captioner), load_model(tiny_captioner, "tiny")[1].tokenizer
    for text in ("a red square", " green  TABLE ", "", "ﬁne \N{SNOWFLAKE}", "a red </s> square", "<s><pad> <unk>"):
        assert ours.encode(text) == theirs(text).input_ids[:-1]


def test_tokens_that_the_decoder_alone_has_are_silent(tiny_captioner: Path):
    tokenizer = load_tokenizer(tiny_captioner)
    ids = tokenizer.encode("a red square")
    assert tokenizer.decode([1, *ids, 10**6, 2]) == "a red square"
    assert tokenizer.id_to_token(10**6) == ""
