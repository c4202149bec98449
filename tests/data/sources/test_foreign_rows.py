"""Data sets in the layouts of other programs, as those programs document them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioner.config import SourceConfig
from captioner.data.sources import load_samples
from captioner.errors import CaptionerError


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., dict[str, tuple[str, ...]]]:
    """Write a file beside photos 1.jpg and 2.jpg, read it, and give the captions of each photo."""

    def run(name: str, content: Any, images: str = ".", **config: Any) -> dict[str, tuple[str, ...]]:
        (tmp_path / images).mkdir(exist_ok=True)
        for number in (1, 2):
            Image.new("RGB", (8, 8)).save(tmp_path / images / f"{number}.jpg")
        text = "".join(json.dumps(row) + "\n" for row in content) if name.endswith("jsonl") else json.dumps(content)
        (tmp_path / name).write_text(text)
        samples, _ = load_samples(SourceConfig(path=str(tmp_path / name), **config))
        return {Path(str(sample.image)).name: sample.captions for sample in samples}

    return run


BOTH = {"1.jpg": ("a dog",), "2.jpg": ("a cat", "a sofa")}


def test_visual_genome_s_regions(read):
    region = {"region_id": 1, "width": 3, "height": 4, "x": 1, "y": 1}
    tree = [
        {"id": 1, "regions": [region | {"phrase": "a dog", "image_id": 1}]},
        {"id": 2, "regions": [region | {"phrase": "a cat"}, region | {"phrase": "a sofa"}]},
    ]
    assert read("region_descriptions.json", tree) == BOTH
    assert read("region_descriptions.json", tree, images="VG_100K_2") == BOTH


def test_localized_narratives(read):
    row = {
        "dataset_id": "open_images_train",
        "annotator_id": 7,
        "timed_caption": [],
        "traces": [],
        "voice_recording": "x",
    }
    rows = [
        row | {"image_id": "1", "caption": "a dog"},
        row | {"image_id": "2", "caption": "a cat"},
        row | {"image_id": "2", "caption": "a sofa"},
    ]
    assert read("open_images_train_captions.jsonl", rows) == BOTH


def test_roboflow_s_jsonl(read):
    rows = [
        {"image": "1.jpg", "prefix": "Describe the image.", "suffix": "a dog"},
        {"image": "2.jpg", "prefix": "<CAPTION>", "suffix": "a cat"},
        {"image": "2.jpg", "prefix": "<CAPTION>", "suffix": "a sofa"},
    ]
    assert read("_annotations.train.jsonl", rows) == BOTH


def test_label_studio_s_annotations_come_before_its_predictions(read):
    def result(*texts: str, kind: str = "textarea") -> dict[str, Any]:
        return {"from_name": "c", "to_name": "i", "type": kind, "value": {"text": list(texts)}}

    tasks = [
        {
            "data": {"image": "/data/local-files/?d=1.jpg"},
            "annotations": [{"result": [result("a dog")]}, {"result": [result("a fox")], "was_cancelled": True}],
            "predictions": [{"result": [result("a wolf")]}],
        },
        {"data": {"image": "2.jpg"}, "annotations": [], "predictions": [{"result": [result("a cat", "a sofa")]}]},
    ]
    assert read("tasks.json", tasks) == BOTH


def test_kohya_s_metadata(read, tmp_path):
    tree = {str(tmp_path / "1.jpg"): {"caption": "a dog"}, "2.jpg": {"tags": "cat, sofa"}}
    assert read("meta.json", tree) == {"1.jpg": ("a dog",), "2.jpg": ("cat, sofa",)}


def test_kohya_s_tags_are_labels(tmp_path, read):
    read("meta.json", {"1.jpg": {"caption": "a dog", "tags": "dog, grass"}})
    samples, _ = load_samples(SourceConfig(path=str(tmp_path / "meta.json"), label_column="tags"))
    assert samples[0].labels == ("dog", "grass")


def test_fiftyone_s_labels(read):
    labels = {"1": {"label": "a dog", "attributes": {"file_name": "1.jpg"}}, "2.jpg": "a cat"}
    assert read("labels.json", {"classes": None, "labels": labels}) == {"1.jpg": ("a dog",), "2.jpg": ("a cat",)}


@pytest.mark.parametrize(
    "tree",
    [
        [{"data": None}, {"data": {}}],
        [{"data": {"image": "1.jpg"}, "annotations": [{"result": [{"type": "textarea", "value": {"text": 3}}]}]}],
        [{"id": 1, "regions": None}],
        [{"regions": [{"phrase": None}]}],
        [{"file_name": None, "caption": 3}],
        {"labels": {"1": None}},
        {"1.jpg": {"caption": None}},
    ],
)
def test_entries_that_cannot_be_used_are_skipped_and_named(read, tree):
    with pytest.raises(CaptionerError, match="no usable sample"):
        read("x.json", tree, on_error="skip")
    with pytest.raises(CaptionerError, match=r"x\.json: entry 0"):
        read("x.json", tree)


@pytest.mark.parametrize("tree", [[], {}, [1], [{"x": 1}], {"a": {"b": 1}}, 3, "text", None])
def test_other_json_is_refused(read, tree):
    with pytest.raises(CaptionerError, match="neither Karpathy's layout"):
        read("x.json", tree)
