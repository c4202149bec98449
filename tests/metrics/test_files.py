import json
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.metrics.files import by_file_name, read_captions, read_results


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


KARPATHY = {
    "images": [
        {"filename": "1.jpg", "split": "test", "sentences": [{"raw": "A dog."}, {"raw": "Dogs"}]},
        {"filename": "2.jpg", "split": "val", "sentences": [{"raw": "A cat."}]},
    ]
}


@pytest.mark.parametrize(
    "content",
    [
        [{"image_id": i, "caption": caption} for i, caption in ((1, "A dog."), (2, "A cat."), (1, "Dogs"))],
        {
            "annotations": [
                {"image_id": i, "caption": caption} for i, caption in ((1, "A dog."), (1, "Dogs"), (2, "A cat."))
            ]
        },
        '{"image": "1", "captions": ["A dog.", "Dogs"]}\n\n{"image_id": 2, "caption": "A cat."}\n',
        '{"image": "1", "caption": "A dog."}\n{"image": "2", "caption": "A cat."}\n{"image": "1", "caption": "Dogs"}',
    ],
)
def test_every_layout_says_the_same(tmp_path: Path, content: object) -> None:
    assert read_captions(write(tmp_path / "x.json", content)) == {"1": ["A dog.", "Dogs"], "2": ["A cat."]}


def test_karpathy_by_split(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", KARPATHY)
    assert read_captions(path, "test") == {"1.jpg": ["A dog.", "Dogs"]}
    assert read_captions(path) == {"1.jpg": ["A dog.", "Dogs"], "2.jpg": ["A cat."]}
    with pytest.raises(CaptionerError, match="no split 'train'; there are test, val"):
        read_captions(path, "train")


def test_a_single_line_is_json_lines(tmp_path: Path) -> None:
    assert read_results(write(tmp_path / "x.jsonl", '{"image": "a.jpg", "caption": "A dog."}\n')) == {"a.jpg": "A dog."}


def test_folders_are_ignored_where_only_file_names_agree() -> None:
    assert by_file_name({"p/1.jpg": "x"}, {"1.jpg": ["y"]}) == ({"1.jpg": "x"}, {"1.jpg": ["y"]})
    ambiguous = {"p/1.jpg": "x", "q/1.jpg": "z"}
    assert by_file_name(ambiguous, {"1.jpg": ["y"]}) == (ambiguous, {"1.jpg": ["y"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no captions"),
        ("not json", "x.json:1: not JSON"),
        ('{"image": "a", "caption": "x"}\n{"image": "b"', "x.json:2: not JSON"),
        ([{"image_id": 1}], "entry 0: no caption that is text, for image 1"),
        ([{"image_id": 1, "caption": 5}], "entry 0: no caption that is text, for image 1"),
        ([{"caption": "x"}], "entry 0: no image_id or image"),
        ([5], "entry 0: not an object"),
        ({"images": [{"filename": "x"}]}, "image 0: no list of sentences"),
        ({"something": 1}, "neither COCO results or captions"),
        ([{"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": "y"}], "1 image with more than one caption: 1"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CaptionerError) as error:
        read_results(write(tmp_path / "x.json", content))
    assert message in str(error.value) and "x.json" in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=r"none\.json: No such file"):
        read_captions(tmp_path / "none.json")
