import numpy as np
import pytest

from captioner.infer.caption import likely_tags


def test_tags_more_likely_than_not_come_most_probable_first_however_large_the_logits() -> None:
    tags = likely_tags(np.array([-2000.0, 1.0, 2000.0, -0.1], dtype=np.float32), ["a", "b", "c", "d"], None)
    assert [tag.text for tag in tags] == ["c", "b"]
    assert [tag.score for tag in tags] == pytest.approx([1.0, 1 / (1 + np.exp(-1))])


def test_an_image_of_one_class_has_one_tag_with_its_probability() -> None:
    (tag,) = likely_tags(np.log([0.2, 0.7, 0.1]), ["a", "b", "c"], "single_label_classification")
    assert tag.text == "b" and tag.score == pytest.approx(0.7)
    assert likely_tags(np.empty(0), [], "single_label_classification") == ()
