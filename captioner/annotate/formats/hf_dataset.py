"""A data set of the library `datasets`, saved on disk or pushed to the Hub, with the images in it."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from captioner.annotate.annotations import Annotation, Report, with_bytes
from captioner.errors import CaptionerError
from captioner.files import new_folder


def to_dataset(annotations: Iterable[Annotation], output: Path, report: Report) -> None:
    """Save it as a new folder, for `datasets.load_from_disk`."""
    with tempfile.TemporaryDirectory() as cache, new_folder(output) as folder:
        _dataset(annotations, Path(cache), report).save_to_disk(folder)


def push_dataset(annotations: Iterable[Annotation], name: str, report: Report) -> None:
    """Push it to the Hub as `owner/name`, private if it is new.

    Raises:
        CaptionerError: the Hub does not take it.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory() as cache:
        dataset = _dataset(annotations, Path(cache), report)
        try:
            dataset.push_to_hub(name, private=True)
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            raise CaptionerError(f"{name}: not pushed: {str(error).splitlines()[0]}") from error


def _dataset(annotations: Iterable[Annotation], cache: Path, report: Report) -> Any:
    from datasets import Dataset, Features, Image, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features(
        {
            "image": Image(),
            "caption": Value("string"),
            "confidence": Value("float64"),
            "alternatives": List({"caption": Value("string"), "confidence": Value("float64")}),
            "tags": List({"tag": Value("string"), "score": Value("float64")}),
            "width": Value("int32"),
            "height": Value("int32"),
            "model": Value("string"),
            "writer": Value("string"),
            "verified": Value("bool"),
        }
    )
    path = cache / "captions.arrow"
    with ArrowWriter(features=features, path=str(path), writer_batch_size=100) as writer:
        for annotation, data in with_bytes(annotations, report):
            image = {"bytes": data, "path": annotation.place}
            writer.write(features.encode_example(annotation.record(cache) | {"image": image}))
        writer.finalize()
    return Dataset.from_file(str(path))
