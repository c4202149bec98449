import json
import shutil
from pathlib import Path

import pytest

from captioner.metrics.ptb import tokenize

FROZEN = Path(__file__).with_name("ptb_frozen.jsonl")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_equals_the_frozen_output_of_the_java_tokenizer() -> None:
    # One run of the Java tool on these captions, in this order: some abbreviations look at the next caption.
    frozen = [json.loads(line) for line in FROZEN.read_text(encoding="utf-8").splitlines()]
    assert len(frozen) == 1000
    tokens = tokenize([row["caption"] for row in frozen])
    different = [row for row, ours in zip(frozen, tokens, strict=True) if " ".join(ours) != row["tokens"]]
    assert different == []


@pytest.mark.skipif(shutil.which("java") is None, reason="the official tokenizer needs Java")
def test_equals_the_java_tokenizer_on_hard_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap", reason="the official tokenizer is pycocoevalcap's")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    parity = pytest.importorskip("ptb_parity", reason="benchmarks are not installed with the package")
    captions = parity.hard_strings(2000, seed=0)
    pairs = zip(captions, map(" ".join, tokenize(captions)), parity.official(captions), strict=True)
    assert [(caption, ours, theirs) for caption, ours, theirs in pairs if ours != theirs] == []


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog, isn't it?", "a man 's dog is n't it"),
        ("They cannot ride (yet) - or can they...", "they can not ride -lrb- yet -rrb- or can they"),
        ("", ""),
        (" . , ! ? ", ""),
        ("http://x.com/a\xa0-", "http://x.com/a\xa0"),  # what ends a line is stripped, and there it is the hyphen
        ("Inc.@@ D.C. a", "inc.@@ d.c. a"),  # of equally long matches: mail, abbreviation, file
        ("two\nlines\r\nof\u2028one caption", "two lines of one caption"),
    ],
)
def test_examples(caption: str, tokens: str) -> None:
    assert [" ".join(found) for found in tokenize([caption])] == [tokens]


def test_an_abbreviation_may_depend_on_the_next_caption() -> None:
    assert tokenize(["vitamin A.", "The man"]) == [["vitamin", "a"], ["the", "man"]]
    assert tokenize(["vitamin A.", "a man"]) == [["vitamin", "a."], ["a", "man"]]


def test_a_contraction_that_ends_the_text_is_a_quotation_mark_and_a_word() -> None:
    assert tokenize(["they're", "they're"]) == [["they", "'re"], ["they", "re"]]


def test_a_very_long_caption_takes_linear_time() -> None:
    assert tokenize(["dog's " * 10_000]) == [["dog", "'s"] * 10_000]
    assert len(tokenize(["x" * 10_000])[0]) == 1
