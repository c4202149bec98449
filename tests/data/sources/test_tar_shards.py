"""Shards give every sample to one process and worker, and a bad file in one costs itself."""

import io
import json
import pickle
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loading import load, refusal, skipped
from PIL import Image

from captioner.config import DataConfig, SourceConfig
from captioner.data.batches import bucketed_batches, load_batches
from captioner.data.dataset import CaptionDataset
from captioner.data.images import ImageError, load_image
from captioner.data.sources import Sample, tar_shards
from captioner.data.sources.stored_images import ShardMember
from captioner.model.processing_captioner import CaptionerImageProcessor


def photo(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def shade(sample: Sample) -> int:
    return load_image(sample.image).getpixel((0, 0))[0]


def write(path: Path, files: dict[str, bytes | str | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
            else:
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, count: int, each: int) -> str:
    for shard in range(count):
        files: dict[str, Any] = {}
        for number in range(each):
            files |= {f"{number:03}.png": photo(shard * each + number), f"{number:03}.txt": f"caption {number}\n"}
        write(folder / f"train-{shard:04}.tar", files)
    return f"{folder}/train-{{0000..{count - 1:04}}}.tar"


def test_captions_and_labels_lie_beside_the_image_in_any_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.tar",
        {
            "a.txt": "first\n\n second \n",
            "./b.jpg": photo(2),
            "b.json": json.dumps({"caption": "one", "labels": ["cat"]}),
            "c.json": json.dumps({"captions": ["two", "three"], "width": 4}),
            "._c.png": b"written by another system's file manager",
            "c.cls": "7",
            "a.PNG": photo(1),
            "a.json": json.dumps({"caption": "not this", "labels": "dog"}),
            "c.webp": photo(3),
        },
    )
    samples = load(path, label_column="labels")
    assert [(s.id, s.captions, s.labels) for s in samples] == [
        ("x.tar/a", ("first", "second"), ("dog",)),
        ("x.tar/b", ("one",), ("cat",)),
        ("x.tar/c", ("two", "three"), ()),
    ]
    assert [shade(sample) for sample in pickle.loads(pickle.dumps(samples))] == [1, 2, 3]


def test_a_range_or_a_glob_names_many_and_each_of_a_range_must_be_there(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, count=3, each=2)
    samples = load(pattern)
    assert [sample.id for sample in samples[1:3]] == ["train-0000.tar/001", "train-0001.tar/000"]
    assert [shade(sample) for sample in samples] == list(range(6))
    assert load(tmp_path / "*.tar") == samples
    assert refusal(pattern.replace("0002}", "0003}")) == f"{tmp_path}/train-0003.tar: no such shard"
    assert refusal(tmp_path / "val-*.tar") == f"{tmp_path}/val-*.tar: no such shard"
    assert refusal(tmp_path / "{3..1}.tar") == f"{tmp_path}/{{3..1}}.tar: the range is empty"


def test_a_folder_with_brackets_holds_its_shards(tmp_path: Path) -> None:
    folder = tmp_path / "trip [2023]"
    folder.mkdir()
    pattern = write_shards(folder, count=2, each=1)
    assert len(load(pattern)) == len(load(folder / "*.tar")) == 2


def test_names_that_mean_the_same_are_one_key(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    files = {f"{nfc}.png": photo(1), f"{nfd}.txt": "one", "2.PNG": photo(2), "2.TXT": "two"}
    path = write(tmp_path / "x.tar", files | {"3.png": photo(3), "3.caption": "three"})
    assert [(shade(s), s.captions) for s in load(path)] == [(1, ("one",)), (2, ("two",)), (3, ("three",))]


def test_two_processes_with_two_workers_see_every_sample_once_an_epoch(tmp_path: Path) -> None:
    samples = load(write_shards(tmp_path, count=3, each=8))
    image_processor = CaptionerImageProcessor(size=4, image_mean=(0, 0, 0), image_std=(1 / 255, 1 / 255, 1 / 255))
    processor = SimpleNamespace(image_processor=image_processor, tokenizer=Tokenizer())
    config = DataConfig(train=SourceConfig(path="x"), validation=SourceConfig(path="x"))
    for epoch in range(2):
        seen: Counter[tuple[Any, float]] = Counter()
        for process in range(2):
            dataset = CaptionDataset(samples, processor, config)
            batches = bucketed_batches(dataset.lengths(), batch_size=8, seed=0, epoch=epoch)
            for batch in load_batches(dataset, [indices[process::2] for indices in batches], num_workers=2):
                assert not batch.errors
                shades = batch.encoder_inputs["pixel_values"][:, 0, 0, 0].round()
                seen.update(zip(batch.ids, shades.tolist(), strict=True))
        assert seen == Counter((sample.id, float(number)) for number, sample in enumerate(samples))


class Tokenizer:
    eos_token_id = 2

    def __call__(self, texts: list[str], **settings: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[[5] for _ in texts])


def link(target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    ("files", "where", "reason"),
    [
        ({"a.png": link("/etc/passwd")}, "'a.png'", "a link, a device or a sparse file"),
        ({"/tmp/a.png": photo(0)}, "'/tmp/a.png'", "the name has a folder in it"),
        ({"../a.png": photo(0)}, "'../a.png'", "the name has a folder in it"),
        ({"a.png": photo(0), "a.jpg": photo(1), "a.txt": "a"}, "a.jpg", "this kind of file already: a.png"),
        ({"a.png": b"x" * 2000, "a.json": "{}"}, "'a.png'", "2,000 bytes are over the limit of 1,000"),
        ({"a.png": photo(0), "a.txt": "x" * 600}, "'a.txt'", "600 bytes are over the limit of 500"),
        ({"a.txt": "a"}, "a", "the image is missing"),
        ({"a.png": photo(0)}, "a", "the image has no caption: neither a .txt of this name nor one in its .json"),
        ({"a.png": photo(0), "a.txt": " \n"}, "a", "the caption is empty"),
        ({"a.png": photo(0), "a.json": '{"caption": "a"'}, "a.json", "not JSON"),
        ({"a.png": photo(0), "a.json": "[1]"}, "a.json", "not an object but [1]"),
        ({"a.png": photo(0), "a.txt": b"caf\xe9"}, "a", "not valid Unicode text"),
    ],
)
def test_a_bad_file_costs_itself(
    files: dict[str, Any], where: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_shards, "MAX_BYTES", 1000)
    monkeypatch.setattr(tar_shards, "MAX_TEXT_BYTES", 500)
    path = write(tmp_path / "x.tar", {"good.png": photo(9), "good.txt": "good", **files})
    message = refusal(path)
    assert message.startswith(f"{path}: {where}: ") and reason in message
    samples, skips = skipped(path)
    assert "x.tar/good" in [sample.id for sample in samples]
    assert any(skip.where == f"{path}: {where}" and reason in skip.reason for skip in skips)


def test_a_damaged_shard_keeps_what_comes_before_the_damage(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, count=2, each=3)
    path = tmp_path / "train-0000.tar"
    whole = path.read_bytes()
    header = whole.index(b"001.png")
    for damaged, reason in [
        (whole[: header + tarfile.BLOCKSIZE + 20], "truncated"),  # within the second image
        (whole[:header], "no end marker"),  # between two files: tarfile would take this for the end
        (whole[:header] + b"\xff" * tarfile.BLOCKSIZE + whole[header + tarfile.BLOCKSIZE :], "no end marker"),
    ]:
        path.write_bytes(damaged)
        assert str(path) in refusal(pattern) and reason in refusal(pattern)
        samples, skips = skipped(pattern)
        assert [sample.id for sample in samples] == ["train-0000.tar/000"] + [f"train-0001.tar/00{i}" for i in range(3)]
        assert any(reason in skip.reason for skip in skips)


def test_compressed_shards_are_refused_by_name_and_skipped_whole(tmp_path: Path) -> None:
    write_shards(tmp_path, count=1, each=1)
    packed = write(tmp_path / "train-0001.tar", {"a.png": photo(0), "a.txt": "a"}, "w:gz")
    assert refusal(packed).startswith(f"{packed}: not an uncompressed tar file")
    assert [sample.id for sample in skipped(tmp_path / "*.tar")[0]] == ["train-0000.tar/000"]


def test_an_image_that_cannot_be_decoded_names_tar_and_member(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", {"a.png": b"not a photo", "a.txt": "a"})
    (sample,) = load(path)
    assert isinstance(sample.image, ShardMember)
    with pytest.raises(ImageError, match=r"x\.tar: a\.png: not an image"):
        load_image(sample.image)
    path.unlink()
    with pytest.raises(ImageError, match=r"x\.tar: a\.png: no such file"):
        load_image(sample.image)


def test_shards_without_captions(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", {"a.png": photo(1), "b.png": photo(2), "b.json": '{"tags": ["cat"]}'})
    assert [(s.captions, s.labels) for s in load(path, captioned=False, label_column="tags")] == [
        ((), ()),
        ((), ("cat",)),
    ]
