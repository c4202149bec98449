"""METEOR against numbers that the official Java program (`-l en -norm`) printed, and its parts on data made by hand."""

import gzip
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.metrics import meteor_data
from captioner.metrics.meteor import ALPHA, BETA, DELTA, GAMMA, Meteor
from captioner.metrics.meteor_data import MeteorData, normalized_words

# hypothesis, references, score
OFFICIAL = [
    ("a man riding a horse on the beach", ["a man riding a horse on the beach"], 1.0),
    ("a dog runs through the grass", ["the dogs running in grass", "a dog is on a sofa"], 0.25091434851094324),
    (
        "two kids play with a football",
        ["two children are playing with a soccer ball", "kids playing"],
        0.36331707762338494,
    ),
    (
        "a couch in front of a tv set",
        ["a sofa is next to a television", "a television set across from a couch"],
        0.3435556426278754,
    ),
    (
        "a large number of people standing outside of a building",
        ["many people are standing in front of a building", "a lot of persons out of the house"],
        0.30393401686293137,
    ),
    (
        "the street in the city is full of cars in the night",
        ["in the night the city street is full of cars and the cars are in the traffic"],
        0.3544260561379819,
    ),
    (
        "the man and the man and the man",
        ["the man with the man beside the man and the dog", "a man and a man"],
        0.33618120722067885,
    ),
    (
        "a well-known man 's dog is n't happy",
        ["the famous man 's dogs are n't happy", "it is unhappy"],
        0.49189060599627477,
    ),
    (
        "mr. smith looks at a u.s. flag",
        ["mr smith is looking at a us flag .", "mister smith gazes at the flag"],
        0.4033631455108703,
    ),
    ("geese flew over lakes", ["a goose flies above a lake", "birds"], 0.1711055505751614),
    ("zebra", ["a bathroom with a white toilet and a sink"], 0.0),
    ("", ["a cat"], 0.0),
    ("a cat", [], 0.0),
]
OFFICIAL_CORPUS = 0.331715409004077

needs_package = pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="needs the data of pycocoevalcap")


@needs_package
def test_scores_equal_the_official_ones() -> None:
    corpus, per_image = Meteor.load().score([h for h, _, _ in OFFICIAL], [r for _, r, _ in OFFICIAL])
    assert per_image == pytest.approx([score for _, _, score in OFFICIAL], abs=1e-12)
    assert corpus == pytest.approx(OFFICIAL_CORPUS, abs=1e-12)


@needs_package
@pytest.mark.skipif("CAPTIONER_COCO" not in os.environ, reason="set CAPTIONER_COCO to the folder with references.json")
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_human_captions_score_as_the_running_java_program_scores_them() -> None:
    from pycocoevalcap.meteor.meteor import Meteor as JavaMeteor

    captions: dict[int, list[str]] = {}
    for annotation in json.loads(Path(os.environ["CAPTIONER_COCO"], "references.json").read_text())["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(" ".join(annotation["caption"].split()))
    images = list(captions)[:1000]
    hypotheses = [captions[image][0] for image in images]
    references = [captions[image][1:] for image in images]
    expected_corpus, expected = JavaMeteor().compute_score(
        dict(zip(images, references, strict=True)), {image: captions[image][:1] for image in images}
    )
    corpus, per_image = Meteor.load().score(hypotheses, references)
    assert per_image == pytest.approx(expected, abs=1e-9)
    assert corpus == pytest.approx(expected_corpus, abs=1e-9)


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor_data, "find_spec", lambda name: None)
    with pytest.raises(CaptionerError, match=r"^METEOR .* pip install 'captioner\[metrics\]'$"):
        Meteor.load()


@pytest.fixture
def tiny(tmp_path: Path) -> Meteor:
    """METEOR that knows one synonym set, one irregular form and one paraphrase."""
    table = tmp_path / "paraphrase.gz"
    with gzip.open(table, "wt") as file:
        file.write("0.5\nin front of\nbefore\n0.5\nunused\nentry\n")
    return Meteor(
        MeteorData(
            function_words=frozenset({"a", "the"}),
            synsets={"couch": "11 12", "sofa": "12 13", "goose": "21"},
            irregular={"geese": ["goose"]},
            abbreviations={"St": False, "No": True},
            paraphrase_table=table,
        )
    )


def expected_score(precision: float, recall: float, chunks: int, matches: float) -> float:
    f_mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    return f_mean * (1 - GAMMA * (chunks / matches) ** BETA)


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        # All words match in one chunk: no penalty, the mean of the weights is left.
        ("red couch", "red sofa", (1 + 0.8) / 2),
        ("red geese", "red goose", (1 + 0.8) / 2),
        ("red couches", "red sofas", (1 + 0.8) / 2),
        ("red cats", "red cat", (1 + 0.6) / 2),
        ("before", "in front of", 0.6),
        # Two chunks; then a function word that does not match.
        ("dog cat", "cat dog", expected_score(1, 1, 2, 2)),
        ("the cat", "a cat", expected_score(DELTA, DELTA, 1, 1)),
    ],
)
def test_each_match_counts_with_its_weight(tiny: Meteor, hypothesis: str, reference: str, expected: float) -> None:
    corpus, per_image = tiny.score([hypothesis], [[reference]])
    assert per_image == [pytest.approx(expected, abs=1e-12)]
    assert corpus == per_image[0]


def test_identical_captions_add_no_chunk_to_the_corpus(tiny: Meteor) -> None:
    corpus, per_image = tiny.score(["red couch", "dog cat"], [["red couch", "x"], ["cat dog"]])
    assert per_image[0] == 1.0
    assert corpus == pytest.approx(expected_score(1, 1, 2, 4), abs=1e-12)


def test_the_best_reference_counts_and_none_counts_as_an_empty_one(tiny: Meteor) -> None:
    _, per_image = tiny.score(["red dog", "red dog", ""], [["x y z", "red dog"], [], ["red dog"]])
    assert per_image == [1.0, 0.0, 0.0]


def test_a_caption_of_ten_thousand_characters_is_scored(tiny: Meteor) -> None:
    _, (score,) = tiny.score(["the red dog " * 834], [["the red dog is here"]])
    assert 0 < score < 0.1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a dog 's well-known ball isn't St. John's", "a dog ' s well known ball isn 't st. john 's"),
        ("from the U.S. No. 5 was left. And no.", "from the us no. 5 was left . and no ."),
        ("wait... a-b-c x--y it – or 1,000 and a,b", "wait ... a b-c x y it - or 1,000 and a , b"),
        ("“quoted” ``text'' ‘90s 5's rock'n'roll", "\" quoted \" \" text \" ' 90s 5 's rock 'n'roll"),
        ("mail a@b.c for $5 (50%)", "mail a @ b.c for $ 5 ( 50 % )"),
        ("Café ÜBER Привет 日本語 😀 .", "café über привет 日 本 語 😀 ."),
        ("", ""),
    ],
)
def test_lines_are_normalised_as_by_the_java_program(line: str, expected: str) -> None:
    assert normalized_words(line, {"St": False, "No": True}) == expected.split()
