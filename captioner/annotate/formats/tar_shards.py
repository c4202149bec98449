"""WebDataset shards: KEY.jpg, KEY.txt and KEY.json side by side in tar files of limited size."""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from captioner.annotate.annotations import Annotation, Report, with_bytes
from captioner.files import new_folder

SHARD_BYTES = 1_000_000_000


def to_webdataset(
    annotations: Iterable[Annotation], output: Path, report: Report, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write 00000.tar, 00001.tar ... into a new folder. Keys are the images' numbers: WebDataset wants no dots in them.
    KEY.json has the names. Images are stored as they are."""
    with new_folder(output) as folder:
        shard, number, size = None, 0, 0
        for annotation, data in with_bytes(annotations, report):
            if shard is not None and size + len(data) > shard_bytes:
                shard.close()
                shard = None
            if shard is None:
                shard, size = tarfile.open(folder / f"{number:05}.tar", "w"), 0  # noqa: SIM115  # closed above and below
                number += 1
            record = annotation.record(output) | {"image": annotation.place}
            suffix = os.path.splitext(annotation.place)[1].lower()
            members = {suffix: data, ".txt": annotation.caption.encode(), ".json": json.dumps(record).encode()}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{annotation.id:08}{extension}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
                size += len(content)
        if shard is not None:
            shard.close()
