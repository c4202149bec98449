import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError
from captioner.infer.calibration import FILE, Calibration, History, Logistic, WordRecord, other_features, overlap
from captioner.infer.caption import CaptionMaker
from captioner.infer.captioner import Captioner

OWN = {"mean_log_prob": 2.0, "lowest_log_prob": 0.1, "length": -0.05, "familiarity": -0.1, "record": 0.5}
CALIBRATION = Calibration(
    searched=Logistic({**OWN, "margin": 1.0, "agreement": 0.3}, 1.0),
    alone=Logistic(OWN, 1.0),
    word=Logistic({"log_prob": 1.0, "record": 1.0}, 0.0),
    history=History({"dog": WordRecord(40, 30, 41, 40), "frisbee": WordRecord(10, 1, 10, 1)}, 0.4, 0.7),
    fitted_on={"images": 500},
)


class Letters:
    """A tokenizer of words, for hypotheses made by hand."""

    words = ("a", "dog", "frisbee", "unheard")

    def decode(self, ids):
        return " ".join(self.words[index] for index in ids)

    def id_to_token(self, index):
        return "▁" + self.words[index]


def hypothesis(*ids, log_prob=-0.1, end=-0.1):
    return Hypothesis(ids, (log_prob,) * len(ids), end)


def make(options=None, calibration=CALIBRATION):
    return CaptionMaker(Letters(), options or GenerationOptions(num_beams=3), calibration)


def test_confidence_is_the_logistic_function_of_the_features() -> None:
    best, other = hypothesis(0, 1), hypothesis(0, 2, log_prob=-1.0)
    familiarity = (math.log(0.5) + math.log(40.5)) / 2
    odds = [0.4, (30 + 20 * 0.4) / 60]
    record = sum(math.log(p / (1 - p)) for p in odds)
    agreement = 2 * 1 / 6  # "a" of a, dog, a dog and a, frisbee, a frisbee
    margin = -0.1 - (-1 - 1 - 0.1) / 3
    logit = 1.0 - 0.2 - 0.01 - 0.1 - 0.1 * familiarity + 0.5 * record + margin + 0.3 * agreement
    assert make()([best, other]).confidence == pytest.approx(1 / (1 + math.exp(-logit)))
    alone = 1.0 - 0.2 - 0.01 - 0.1 - 0.1 * familiarity + 0.5 * record
    assert make(GenerationOptions(num_beams=1))([best]).confidence == pytest.approx(1 / (1 + math.exp(-alone)))


def test_words_that_people_seldom_use_where_the_model_does_are_less_probable() -> None:
    dog, unheard, frisbee = (make()([hypothesis(0, index)]).words[1] for index in (1, 3, 2))
    assert [word.text for word in (dog, unheard, frisbee)] == ["dog", "unheard", "frisbee"]
    assert 1 > dog.confidence > unheard.confidence > frisbee.confidence > 0


def test_an_uncalibrated_model_gives_geometric_means_and_products() -> None:
    caption = make(calibration=None)([Hypothesis((0, 1), (-0.5, -1.0), -0.3)])
    assert caption.confidence == pytest.approx(math.exp(-0.6))
    assert [word.confidence for word in caption.words] == pytest.approx([math.exp(-0.5), math.exp(-1.0)])


def test_all_beams_are_compared_and_as_many_returned_as_asked_for() -> None:
    beams = [hypothesis(0, 1), hypothesis(0, 2, log_prob=-1.0), hypothesis(0, 3, log_prob=-2.0)]
    one, two = make()(beams), make(GenerationOptions(num_beams=3, num_return_sequences=2))(beams)
    assert one.alternatives == () and len(two.alternatives) == 1
    assert one.confidence == two.confidence > two.alternatives[0].confidence


def test_only_a_plain_beam_search_compares_its_captions() -> None:
    assert make().search_options == GenerationOptions(num_beams=3, num_return_sequences=3)
    drawn = GenerationOptions(do_sample=True, num_return_sequences=2)
    diverse = GenerationOptions(num_beams=4, num_beam_groups=2, diversity_penalty=1.0)
    for options in (GenerationOptions(num_beams=1), drawn, diverse):
        assert make(options).search_options == options
        assert (
            make(options)([hypothesis(0, 1), hypothesis(0, 2)]).confidence
            == make(options)([hypothesis(0, 1)]).confidence
        )
    assert make(calibration=None).search_options == GenerationOptions(num_beams=3)


def test_further_beams_do_not_count() -> None:
    best, *others = (hypothesis(0, index, log_prob=-index / 10) for index in (1, 2, 3, 0))
    assert other_features(best, others) == other_features(best, others[:2])
    assert overlap((), ()) == 0 and overlap((1, 2), (1, 2)) == 1


def test_a_calibration_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(asdict(CALIBRATION)))
    assert json.loads((tmp_path / FILE).read_text())["history"]["words"]["dog"] == [40, 30, 41, 40]
    assert Calibration.load(tmp_path) == CALIBRATION
    assert Calibration.load(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        json.dumps(asdict(CALIBRATION) | {"word": {"weights": {"log_prob": 1.0}, "intercept": 0.0}}),
        json.dumps(asdict(CALIBRATION) | {"word": {"weights": {"log_prob": 1.0, "record": math.nan}, "intercept": 0}}),
        json.dumps(asdict(CALIBRATION) | {"history": {"words": {"a": [1, 2, 3, 3]}, "acceptable": 0.5, "used": 0.5}}),
        json.dumps(asdict(CALIBRATION) | {"history": {"words": {}, "acceptable": 0, "used": 0.5}}),
    ],
)
def test_what_is_no_calibration_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CaptionerError, match=f"{FILE}: not a calibration"):
        Calibration.load(tmp_path)


def test_fitting_finds_the_weights_that_made_the_outcomes() -> None:
    pytest.importorskip("sklearn", reason="needs the extra calibrate")
    true = Logistic({"x": 3.0, "y": -2.0}, 0.5)
    rows = [{"x": i / 20 - 1, "y": j / 20 - 1} for i in range(40) for j in range(40)]
    outcomes = [true(row) > (7 * number % 100) / 100 for number, row in enumerate(rows)]
    fitted = Logistic.fit(rows, outcomes)
    assert fitted.weights == pytest.approx(true.weights, rel=0.2) and fitted.intercept == pytest.approx(0.5, abs=0.15)
    with pytest.raises(CaptionerError, match="acceptable"):
        Logistic.fit(rows, [True] * len(rows))


@pytest.fixture
def calibrated(tiny_captioner: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny_captioner, tmp_path / "calibrated")
    (folder / FILE).write_text(json.dumps(asdict(CALIBRATION)))
    return folder


def test_a_calibrated_model_says_the_same_with_another_confidence(calibrated: Path, tiny_captioner: Path) -> None:
    image = bytes_of_a_picture()
    plain, ours = (Captioner.from_pretrained(folder, device="cpu")(image) for folder in (tiny_captioner, calibrated))
    assert ours.tokens == plain.tokens and ours.text == plain.text and ours.alternatives == ()
    assert ours.confidence != plain.confidence and 0 < ours.confidence < 1
    assert len(ours.words) == len(ours.text.split())
    together = Captioner.from_pretrained(calibrated, device="cpu")(image, num_return_sequences=3)
    assert replace(together, alternatives=()) == ours, "asking for alternatives changes no confidence"


def bytes_of_a_picture() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
