import json
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.metrics.files import (
    References,
    by_reference,
    read_captions,
    read_references,
    read_results,
    read_training_captions,
)


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
        '{"file_name": "1", "caption": "A dog."}\n{"image": "2", "caption": "A cat."}\n{"image": 1, "caption": "Dogs"}',
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


COCO = {
    "images": [
        {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"},
        {"id": 42, "file_name": "000000000042.jpg"},
    ],
    "annotations": [{"image_id": 391895, "caption": "A man."}, {"image_id": 42, "caption": "A cat."}],
}


@pytest.mark.parametrize(
    ("result", "image"),
    [
        ("391895", "391895"),
        ("COCO_val2014_000000391895.jpg", "391895"),
        ("photos/val2014/COCO_val2014_000000391895.jpg", "391895"),
        ("/data/COCO_val2014_000000391895.jpg", "391895"),
        ("photos\\COCO_val2014_000000391895.jpg", "391895"),
        ("C:\\photos/val\\COCO_val2014_000000391895.jpg", "391895"),
        ("000000391895", "391895"),
        ("val2017/000000391895.jpg", "391895"),
        ("val2017/000000000042.jpg", "42"),
        ("COCO_val2014_000000000042.png", "42"),
        ("000000000043.jpg", "000000000043.jpg"),
        ("43", "43"),
        ("2014_000000391895.jpg", "2014_000000391895.jpg"),
    ],
)
@pytest.mark.parametrize("has_file_names", [True, False])
def test_images_of_coco_are_found_by_id_by_file_name_and_by_the_number_in_it(
    tmp_path: Path, result: str, image: str, has_file_names: bool
) -> None:
    content = COCO if has_file_names else {"annotations": COCO["annotations"]}
    references = read_references(write(tmp_path / "captions_val2014.json", content))
    assert by_reference({result: "x"}, references) == {image: "x"}


def test_numbers_are_found_where_references_are_file_names() -> None:
    names = References({"val2014/COCO_val2014_000000391895.jpg": ["A man."]}, {})
    assert by_reference({"391895": "x"}, names) == {"val2014/COCO_val2014_000000391895.jpg": "x"}


def test_karpathys_file_names_are_found_where_the_id_is_cocoid(tmp_path: Path) -> None:
    sentences = [{"raw": "A man."}]
    image = {"filepath": "val2014", "filename": "1.jpg", "cocoid": 7, "split": "test", "sentences": sentences}
    other = {**image, "filepath": "train2014", "cocoid": 8}
    references = read_references(write(tmp_path / "x.json", {"images": [image, other]}))
    results = {"coco/train2014/1.jpg": "x", "coco\\val2014\\1.jpg": "y"}
    assert by_reference(results, references) == {"8": "x", "7": "y"}
    assert by_reference({"1.jpg": "x"}, references) == {"1.jpg": "x"}, "two images are called so"


def test_the_longest_common_end_of_two_paths_decides() -> None:
    references = References({"a/1.jpg": ["x"], "b/1.jpg": ["y"], "caf\u00e9.jpg": ["z"]}, {})
    assert by_reference({"./p/b/1.jpg": "x", "p/a/1.jpg": "y"}, references) == {"b/1.jpg": "x", "a/1.jpg": "y"}
    assert by_reference({"q/1.jpg": "x"}, references) == {"q/1.jpg": "x"}
    assert by_reference({"p/cafe\u0301.jpg": "x"}, references) == {"caf\u00e9.jpg": "x"}


def test_two_images_that_are_one_of_the_references_are_refused() -> None:
    references = References({"1.jpg": ["y"]}, {})
    assert by_reference({"p/1.jpg": "x"}, references) == {"1.jpg": "x"}
    with pytest.raises(CaptionerError, match=r"p/1.jpg and q/1.jpg are both 1.jpg of the references"):
        by_reference({"p/1.jpg": "x", "q/1.jpg": "z"}, references)


def test_training_captions_are_those_of_train_and_restval_where_there_are_splits(tmp_path: Path) -> None:
    splits = ("train", "val", "restval", "test")
    images = [{"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": split}]} for split in splits]
    karpathy = write(tmp_path / "x.json", {"images": images})
    assert read_training_captions(karpathy) == ["train", "restval"]
    assert list(read_captions(karpathy, "train")) == ["train.jpg", "restval.jpg"]
    rows = [{"image": split, "caption": split, "split": split} for split in splits]
    assert read_training_captions(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))) == ["train", "restval"]
    unsplit = [{"image_id": 1, "caption": "A dog."}, {"image_id": 1, "caption": "Dogs"}]
    assert read_training_captions(write(tmp_path / "y.json", unsplit)) == ["A dog.", "Dogs"]
    with pytest.raises(CaptionerError, match="no split 'train'; there are test, val"):
        read_training_captions(write(tmp_path / "z.json", KARPATHY))


def test_a_split_of_a_file_that_has_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=r"x\.json: has no splits, 'test' or other"):
        read_captions(write(tmp_path / "x.json", COCO), "test")


def test_csv_as_infer_writes_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'image,caption,confidence\np/1.jpg,"a dog, running",0.5\np/2.jpg,,0.1\n')
    assert read_results(path) == {"p/1.jpg": "a dog, running", "p/2.jpg": ""}
    with pytest.raises(CaptionerError, match=r"x\.csv:2: unexpected end"):
        read_results(write(tmp_path / "x.csv", 'image,caption\n1.jpg,"a dog\n'))
    with pytest.raises(CaptionerError, match=r"x\.csv:2: no image_id or image"):
        read_results(write(tmp_path / "x.csv", "file,caption\n1.jpg,a dog\n"))


def test_one_string_is_one_caption(tmp_path: Path) -> None:
    rows = '{"image": 1.0, "captions": "A dog."}\n{"image": 2, "caption": ["A cat."]}'
    assert read_captions(write(tmp_path / "x.jsonl", rows)) == {"1": ["A dog."], "2": ["A cat."]}


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
