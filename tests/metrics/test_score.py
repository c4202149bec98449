import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.metrics import score as score_module
from captioner.metrics import score_captions
from captioner.metrics.files import read_captions, read_results
from captioner.metrics.ptb import tokenize

REFERENCES = {
    1: ["a dog runs on the beach", "the dog is running"],
    2: ["two cats sleep on a couch", "cats are asleep"],
    3: ["a red bus drives down the street", "the bus is red"],
}
CAPTIONS = {1: "a dog runs on the beach", 2: "a cat on a couch", 3: "a dog runs on the beach"}


@pytest.fixture(scope="module")
def coco() -> Path:
    folder = os.environ.get("CAPTIONER_COCO")
    if not folder:
        pytest.skip("CAPTIONER_COCO is not set: a folder with references.json, results.json and expected.json")
    return Path(folder)


def test_equals_the_official_scores_of_the_coco_test_split(coco: Path) -> None:
    expected = json.loads((coco / "expected.json").read_text())
    corpus = score_captions(read_results(coco / "results.json"), read_captions(coco / "references.json")).corpus
    assert len(corpus) == 6
    assert corpus == pytest.approx({name: expected[name] for name in corpus}, abs=1e-9)


@pytest.mark.skipif(shutil.which("java") is None, reason="the official scorer needs Java")
def test_each_image_equals_the_official_scorer_s(coco: Path) -> None:
    pytest.importorskip("pycocoevalcap", reason="the official scorer")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    results, references = read_results(coco / "results.json"), read_captions(coco / "references.json")
    ours = score_captions(results, references).per_image
    truth = PTBTokenizer().tokenize({i: [{"caption": text} for text in texts] for i, texts in references.items()})
    captions = PTBTokenizer().tokenize({i: [{"caption": results[i]}] for i in references})
    official = {f"Bleu_{n}": scores for n, scores in enumerate(Bleu(4).compute_score(truth, captions, verbose=0)[1], 1)}
    official["ROUGE_L"] = Rouge().compute_score(truth, captions)[1]
    official["CIDEr"] = Cider().compute_score(truth, captions)[1]
    for name, scores in official.items():
        assert np.abs(ours[name] - scores).max() < 1e-9, name


EMPTY = ("", " ", "...", ". !?")


@pytest.mark.parametrize("place", ["a caption", "all captions", "a reference", "all references of an image"])
@pytest.mark.parametrize("empty", EMPTY)
def test_what_is_empty_after_tokenization_scores_as_in_the_official_scorer(empty: str, place: str) -> None:
    pytest.importorskip("pycocoevalcap", reason="the official scorer")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions, references = dict(CAPTIONS), {image: list(texts) for image, texts in REFERENCES.items()}
    if place in ("a caption", "all captions"):
        captions |= dict.fromkeys([2] if place == "a caption" else captions, empty)
    elif place == "a reference":
        references[2].append(empty)
    else:
        references[2] = [empty]
    ours = score_captions(captions, references)
    truth = {i: [" ".join(words) for words in tokenize(texts)] for i, texts in references.items()}
    found = {i: [" ".join(*tokenize([captions[i]]))] for i in references}
    bleu, each = Bleu(4).compute_score(truth, found, verbose=0)
    official = {f"Bleu_{n + 1}": (bleu[n], each[n]) for n in range(4)}
    official |= {"ROUGE_L": Rouge().compute_score(truth, found), "CIDEr": Cider().compute_score(truth, found)}
    for name, (score, scores) in official.items():
        assert ours.corpus[name] == pytest.approx(score, abs=1e-9)
        assert ours.per_image[name] == pytest.approx(scores, abs=1e-9)
    assert set(ours.intervals(9)) == set(ours.compared_with(ours, 9)) == set(official)


@pytest.mark.filterwarnings("error")
def test_no_word_at_all_is_scored_without_a_warning() -> None:
    scores = score_captions({1: "..."}, {1: ["", "!"]}, training_captions="...")
    assert scores.corpus["CIDEr"] == 0 and scores.diversity.novel_share == 0 and scores.diversity.mean_length == 0


def test_one_string_is_one_metric_and_one_training_caption() -> None:
    scores = score_captions(CAPTIONS, REFERENCES, metrics="CIDEr", training_captions=CAPTIONS[1])
    assert list(scores.corpus) == ["CIDEr"] and scores.diversity.novel_share == pytest.approx(1 / 3)


def test_perfect_captions_score_what_they_should() -> None:
    scores = score_captions({i: texts[0] for i, texts in REFERENCES.items()}, REFERENCES).corpus
    assert [scores[f"Bleu_{n}"] for n in range(1, 5)] == pytest.approx([1] * 4)
    assert scores["ROUGE_L"] == pytest.approx(1)
    assert 4 < scores["CIDEr"] < 10


def test_corpus_scores_do_not_depend_on_the_order_of_images() -> None:
    backwards = dict(reversed(CAPTIONS.items()))
    assert score_captions(backwards, REFERENCES).corpus == score_captions(CAPTIONS, REFERENCES).corpus


def test_an_empty_caption_scores_nothing_and_harms_nobody_else() -> None:
    scores = score_captions({**CAPTIONS, 2: ""}, REFERENCES).per_image
    for name, values in score_captions(CAPTIONS, REFERENCES).per_image.items():
        assert scores[name][1] == pytest.approx(0, abs=1e-6)
        assert scores[name][0] == values[0]


def test_a_caption_of_10_000_characters_is_scored_in_moments() -> None:
    start = time.perf_counter()
    scores = score_captions({**CAPTIONS, 1: "a dog runs " * 1000}, REFERENCES).per_image
    assert time.perf_counter() - start < 5
    assert all(0 <= values[0] < 0.1 for values in scores.values())


@pytest.mark.parametrize(
    ("captions", "references", "options", "message"),
    [
        ({1: "a", 2: "b"}, REFERENCES, {}, "1 image without a caption: 3"),
        ({**CAPTIONS, 9: "x"}, REFERENCES, {}, "1 image with a caption, but not among the references: 9"),
        ({**CAPTIONS, 2: None}, REFERENCES, {}, "1 image whose caption is no text: 2"),
        (CAPTIONS, {**REFERENCES, 3: []}, {}, "1 image without references: 3"),
        (CAPTIONS, {**REFERENCES, 3: ["a", 5]}, {}, "1 image with a reference that is no text: 3"),
        (CAPTIONS, {**REFERENCES, 3: "a bus"}, {}, "1 image with one string instead of a list"),
        ({}, {i: ["a"] for i in range(9)}, {}, "9 images without a caption: 0, 1, 2, 3, 4 and 4 more"),
        ({}, {}, {}, "there are no captions to score"),
        (CAPTIONS, REFERENCES, {"metrics": ["Bleu_5"]}, "unknown metric 'Bleu_5'; there are Bleu_1"),
        (CAPTIONS, REFERENCES, {"tokenization": "words"}, "tokenization 'words' is none of ptb, char"),
        (CAPTIONS, REFERENCES, {"tokenization": "char", "metrics": ["METEOR"]}, "METEOR is for English"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(
    captions: dict, references: dict, options: dict, message: str
) -> None:
    with pytest.raises(CaptionerError) as error:
        score_captions(captions, references, **options)
    assert message in str(error.value)


def test_characters_are_tokens_where_words_have_no_blanks_between_them() -> None:
    references = {1: ["一只狗在海滩上奔跑。"], 2: ["两只猫在沙发上睡觉"]}
    captions = {1: "一只狗在海滩上奔跑", 2: "一只猫在睡觉"}
    scores = score_captions(captions, references, tokenization="char")
    assert scores.tokenization == "char"
    assert scores.per_image["ROUGE_L"][0] == pytest.approx(1)
    assert 0 < scores.per_image["Bleu_2"][1] < 1


def test_intervals_cover_the_score_shrink_with_images_and_repeat() -> None:
    rng = np.random.default_rng(0)

    def scores(images: int) -> score_module.Scores:
        references = {i: ["a dog runs on the beach"] for i in range(images)}
        return score_captions({i: "a dog runs" + " away" * int(rng.integers(6)) for i in range(images)}, references)

    few, many = scores(20), scores(2000)
    for name, value in many.corpus.items():
        low, high = many.intervals()[name]
        assert low <= value <= high
        assert high - low <= few.intervals()[name].high - few.intervals()[name].low
    assert many.intervals() == many.intervals()


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    measure = score_module._mean("x", values)
    scores = score_module.Scores("ptb", list(range(4000)), [measure], score_module._diversity([["a"]], None))
    low, high = scores.intervals(resamples=4000)["x"]
    assert [low, high] == pytest.approx([values.mean() - 1.96 / 4000**0.5, values.mean() + 1.96 / 4000**0.5], abs=3e-3)


def test_paired_test_tells_better_from_equal() -> None:
    images = range(200)
    references = {i: [f"a dog number {i} runs on the beach"] for i in images}
    good = score_captions({i: f"a dog number {i} runs on a beach" for i in images}, references)
    bad = score_captions({i: "a dog" if i % 2 else f"a dog number {i} runs on a beach" for i in images}, references)
    better = good.compared_with(bad)["CIDEr"]
    assert better.difference > 0 and better.interval.low > 0 and better.p_value < 0.01
    same = good.compared_with(good)["CIDEr"]
    assert same.difference == 0 and same.p_value == 1
    with pytest.raises(CaptionerError, match="same images"):
        good.compared_with(score_captions(CAPTIONS, REFERENCES))


def test_diversity_shows_a_collapsed_model() -> None:
    diversity = score_captions(CAPTIONS, REFERENCES, training_captions=["A cat on a couch."]).diversity
    assert diversity.captions == 3
    assert diversity.vocabulary_size == 8  # a dog runs on the beach cat couch
    assert diversity.mean_length == pytest.approx(17 / 3)
    assert diversity.distinct_share == pytest.approx(2 / 3)
    assert diversity.repeated_share == pytest.approx(2 / 3)
    assert diversity.novel_share == pytest.approx(2 / 3)


def test_spice_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(change: Callable[[], None]) -> str:
        change()
        with pytest.raises(CaptionerError) as error:
            score_captions(CAPTIONS, REFERENCES, metrics=["SPICE"])
        return str(error.value)

    class Package:
        submodule_search_locations = (str(tmp_path),)

    spice = "captioner.metrics.spice"
    assert "pip install 'captioner[metrics]'" in refused(
        lambda: monkeypatch.setattr(f"{spice}.find_spec", lambda _: None)
    )
    monkeypatch.setattr(f"{spice}.find_spec", lambda _: Package)
    assert "needs Java" in refused(lambda: monkeypatch.setattr(f"{spice}.shutil.which", lambda _: None))
    assert "stanford-corenlp" in refused(lambda: monkeypatch.setattr(f"{spice}.shutil.which", lambda _: "java"))


def test_meteor_joins_the_table_where_its_data_is_installed() -> None:
    pytest.importorskip("pycocoevalcap", reason="METEOR's data is pycocoevalcap's")
    scores = score_captions(CAPTIONS, REFERENCES, metrics=["CIDEr", "METEOR"])
    assert list(scores.corpus) == ["METEOR", "CIDEr"]
    low, high = scores.intervals()["METEOR"]
    assert low <= scores.corpus["METEOR"] <= high
