"""The Ray pipeline, on a cluster of this machine."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner import Captioner

pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")

START = """
import sys, ray
ray.init(num_cpus=3, include_dashboard=False, logging_level="ERROR")
import captioner.ray
source, output, model, workers = sys.argv[1:]
captioner.ray.annotate(captioner.ray.read(source), output, model=model, workers=int(workers), batch_size=4, num_beams=2)
"""


def start(*arguments: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", START, *map(str, arguments)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def written(output: Path) -> list[dict[str, Any]]:
    files = sorted(output.glob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def many(photos: list[Path], folder: Path, copies: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{copy:03}-{photo.name}" for copy in range(copies) for photo in photos]
    for number, path in enumerate(paths):
        path.write_bytes(photos[number % len(photos)].read_bytes())
    return paths


def test_two_workers_caption_as_infer_does_and_name_what_cannot_be_read(exported, photos, tmp_path):
    paths = many(photos, tmp_path / "photos", 6)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    assert start(tmp_path / "photos", tmp_path / "out", exported, 2).wait(180) == 0
    rows = {row["path"]: row for row in written(tmp_path / "out")}
    expected = dict(zip(map(str, paths), Captioner.from_pretrained(exported)(paths, num_beams=2), strict=True))
    broken = rows.pop(str(tmp_path / "photos" / "broken.jpg"))
    assert broken["error"] == "not_an_image" and broken["caption"] is None
    assert {path: row["caption"] for path, row in rows.items()} == {p: c.text for p, c in expected.items()}
    first = rows[str(paths[0])]
    assert (first["width"], first["height"], first["error"]) == (60, 40, None)
    assert [tag["tag"] for tag in json.loads(first["tags"])] == [tag.text for tag in expected[str(paths[0])].tags]


def test_tar_shards_and_tables_are_read_too(exported, photos, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for number, photo in enumerate(photos):
            shard.add(photo, f"{number:04}.png")
    table = pa.table({"id": [photo.name for photo in photos], "bytes": [photo.read_bytes() for photo in photos]})
    pq.write_table(table, tmp_path / "0.parquet")
    texts = [caption.text for caption in Captioner.from_pretrained(exported)(photos, num_beams=2)]
    for name, column, ids in (("0.tar", "__key__", "0000"), ("0.parquet", "id", "0.png")):
        assert start(tmp_path / name, tmp_path / column, exported, 1).wait(180) == 0
        rows = sorted(written(tmp_path / column), key=lambda row: row[column])
        assert [row["caption"] for row in rows] == texts and rows[0][column] == ids
