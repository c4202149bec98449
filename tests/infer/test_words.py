import pytest

from captioner.infer.words import tokens_of_words


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("a dog runs", ["▁a", "▁dog", "▁run", "s"], [[0], [1], [2, 3]]),
        ("a dog runs", ["a", "Ġdog", "Ġrun", "s"], [[0], [1], [2, 3]]),
        ("a dog runs", ["a", "dog", "run", "##s"], [[0], [1], [2, 3]]),
        ("red tie", list("▁red▁tie"), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("a café", ["▁a", "▁caf", "<0xC3>", "<0xA9>"], [[0], [1, 2, 3]]),
        ("a café now", ["a", "Ġcaf", "Ã", "©", "Ġnow"], [[0], [1, 2, 3], [4]]),
        ("a dog", ["▁a", "<unk>", "▁dog"], [[0, 1], [2]]),
        ("a b c", ["▁a"], [[0], [0], [0]]),
        ("", ["▁a"], []),
        ("a b", [], [[], []]),
    ],
)
def test_every_token_belongs_to_a_word_whatever_the_tokenizer(text, pieces, expected) -> None:
    assert [places for _, places in tokens_of_words(text, pieces)] == expected
    assert [word for word, _ in tokens_of_words(text, pieces)] == text.split()
