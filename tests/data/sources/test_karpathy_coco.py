"""Karpathy's and COCO's JSON: every mistake in one is named with its entry, at the cost chosen."""

import json
import os
from pathlib import Path

import pytest
from layouts import CAPTIONS, check, check_images, problem, write_coco, write_karpathy
from loading import load, refusal

from captioner.data.images import load_image


def test_karpathy(folder: Path) -> None:
    path = write_karpathy(folder)
    assert [s.id for s in load(path, split="train")] == [0, 2]  # restval counts as train
    assert [s.id for s in load(path, split="restval")] == [2]
    check(load(path, split="train")[:1] + load(path, split="val") + load(path, split="restval"), [0, 1, 2])
    moved = folder / "elsewhere"
    (folder / "images").rename(moved)
    assert len(load(path, split="train", images=str(moved))) == 2


def test_karpathy_prefers_coco_ids(folder: Path) -> None:
    image = {"filename": "a.jpg", "cocoid": 391895, "sentences": [{"raw": "a"}]}
    assert load(write_karpathy(folder, [image]))[0].id == 391895


def test_coco(folder: Path) -> None:
    check(load(write_coco(folder)), [10, 11, 12])


def test_coco_as_its_archive_unpacks(folder: Path) -> None:
    (folder / "annotations").mkdir()
    (folder / "images").rename(folder / "val2017")
    check(load(write_coco(folder / "annotations")), [10, 11, 12])


def test_mistakes_in_karpathys_layout(folder: Path) -> None:
    image = {"filename": "a.jpg", "cocoid": 0, "sentences": [{"raw": "a"}]}
    good = {"filename": "b.jpg", "cocoid": 1, "sentences": [{"raw": "b"}]}
    for bad, reason in [
        (image | {"cocoid": 1}, "the id 1 is taken by"),
        (image | {"filename": "none.jpg"}, "the image is missing"),
        (image | {"sentences": []}, "the image has no caption"),
        (image | {"sentences": [{"raw": ""}]}, "the caption is empty"),
        (image | {"cocoid": None}, "malformed: the image's id is None"),
        (7, "malformed: not an object but 7"),
    ]:
        path = write_karpathy(folder, [good, bad])  # type: ignore[list-item]
        problem(folder, path, f"{path}: images[1]", reason, 1)


def test_mistakes_in_cocos_layout(folder: Path) -> None:
    path = write_coco(
        folder,
        annotations=[{"image_id": i, "caption": "a"} for i in (10, 11, 99)] + [{"image_id": 12, "caption": "c"}],
    )
    problem(folder, path, f"{path}: annotations[2]", "there is no image with the id 99", 3)
    path = write_coco(folder, annotations=[{"image_id": i, "caption": "a"} for i in (10, 11)])
    problem(folder, path, f"{path}: images[2]", "the image has no caption", 2)
    path = write_coco(
        folder, images=[{"id": 10, "file_name": "a.jpg"}] * 2, annotations=[{"image_id": 10, "caption": "a"}]
    )
    problem(folder, path, f"{path}: images[1]", "the id 10 is taken by", 1)
    path = write_coco(folder, annotations=[{"image_id": 10, "bbox": [0, 0, 1, 1]}])
    assert "its annotations have no captions" in refusal(path)


def test_images_alone(folder: Path) -> None:
    check_images(write_karpathy(folder, [{"filename": name, "sentences": []} for name in CAPTIONS]), list(CAPTIONS))
    check_images(write_coco(folder), [10, 11, 12])
    path = folder / "image_info_unlabeled2017.json"
    path.write_text(json.dumps({"images": [{"id": 7, "file_name": "a.jpg"}]}))
    check_images(path, [7])


def test_flickr8k() -> None:
    root = os.environ.get("CAPTIONER_FLICKR8K")
    if root is None:
        pytest.skip("CAPTIONER_FLICKR8K does not name the folder with dataset_flickr8k.json and images/")
    train, val = (load(Path(root) / "dataset_flickr8k.json", split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6000, 1000)
    assert {len(sample.captions) for sample in train + val} == {5}
    assert not {sample.image for sample in train} & {sample.image for sample in val}
    assert len({sample.id for sample in train + val}) == 7000
    assert all(load_image(sample.image).size == (224, 224) for sample in val[:50])
