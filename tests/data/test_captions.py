"""Captions become labels that end once, at their end."""

from pathlib import Path

import pytest

from captioner.data.captions import encode_captions
from captioner.data.dataset import TextDataset
from captioner.hub.load import load_model

SIGN = "a red </s> square"


@pytest.fixture
def tokenizer(tiny_captioner: Path):
    return load_model(tiny_captioner, "tiny")[1].tokenizer


def test_a_caption_that_spells_the_end_of_sequence_is_learnt_to_its_own_end(tokenizer):
    encoded = [*encode_captions([[SIGN, "<pad> a"], [], ["a <s> red"]], tokenizer, 40)]
    assert list(map(len, encoded)) == [2, 0, 1]
    for ids in (*encoded[0], *encoded[2], *TextDataset([SIGN], tokenizer, 40)[0]["captions"]):
        assert ids[-1] == tokenizer.eos_token_id and not {0, 1, 2} & set(ids[:-1])
    (ids,) = TextDataset([SIGN], tokenizer, 40)[0]["captions"]
    assert ids[-8:] == tokenizer("square").input_ids[-8:]


def test_long_captions_are_cut_before_the_end_of_sequence(tokenizer):
    whole = encode_captions([["a red square"]], tokenizer, 40)[0][0]
    assert encode_captions([["a red square"]], tokenizer, len(whole))[0][0] == whole
    assert encode_captions([["a red square"]], tokenizer, 5)[0][0] == [*whole[:4], tokenizer.eos_token_id]
