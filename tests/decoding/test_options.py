import numpy as np
import pytest

from captioner.decoding.options import GenerationOptions, word_options
from captioner.errors import CaptionerError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": "3"}, "num_beams must be a whole number; it is 3"),
        ({"max_new_tokens": 7.5}, "max_new_tokens must be a whole number; it is 7.5"),
        ({"do_sample": True, "top_p": "0.9"}, "top_p must be a number; it is 0.9"),
        ({"do_sample": True, "seed": 0.5}, "seed must be a whole number; it is 0.5"),
        ({"prefix_ids": "man"}, "prefix_ids must be token ids; it is man"),
        ({"prefix_ids": 5}, "prefix_ids must be token ids; it is 5"),
        ({"bad_words_ids": (5, 7)}, r"bad_words_ids must be sequences of token ids; it is \(5, 7\)"),
        ({"bad_words_ids": "man"}, "bad_words_ids must be sequences of token ids; it is man"),
        ({"bad_words_ids": [["m", "a"]]}, "bad_words_ids must be sequences of token ids; it is"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never'; it is always"),
        ({"early_stopping": 1}, "early_stopping must be True, False or 'never'; it is 1"),
        ({"repetition_penalty": "high"}, "repetition_penalty must be a number; it is high"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0; it is 0"),
        ({"force_words_ids": [[[5]]]}, "force_words_ids must be sequences of token ids; it is"),
    ],
)
def test_values_of_another_kind_are_refused(fields, message):
    with pytest.raises(CaptionerError, match=message):
        GenerationOptions(**fields)


def test_token_ids_may_come_in_any_sequence():
    options = GenerationOptions(
        prefix_ids=np.array([3, 4]), bad_words_ids=[[5], np.array([6, 7])], force_words_ids=[[8]]
    )
    assert (options.prefix_ids, options.bad_words_ids, options.force_words_ids) == ((3, 4), ((5,), (6, 7)), ((8,),))


def letters(text: str) -> tuple[int, ...]:
    """A tokenizer that does not tell a word after a space from one at the start."""
    return tuple(map(ord, text.strip()))


def test_one_string_is_one_word():
    words = word_options(letters, 0, "a man", "man", "old man")
    assert words == word_options(letters, 0, " a  man ", ["man"], (word for word in [" old  man"]))
    assert words == {
        "prefix_ids": letters("a man"),
        "bad_words_ids": (letters("man"),),
        "force_words_ids": (letters("old man"),),
    }
    assert word_options(letters, 0, "  ", (), []) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("", ["man", " "], ()), "banned_words must be words; ' ' is none"),
        (("", "", ()), "banned_words must be words; '' is none"),
        (("", (), [5]), "forced_words must be words; 5 is none"),
        (("", (), 5), "forced_words must be words; 5 is none"),
        (("", None, ()), "banned_words must be words; None is none"),
        ((["a photo"], (), ()), r"prefix must be a string; it is \['a photo'\]"),
    ],
)
def test_what_is_no_word_is_refused(words, message):
    with pytest.raises(CaptionerError, match=message):
        word_options(letters, 0, *words)
