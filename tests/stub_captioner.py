"""A captioner without a network, which names the mean colour of a picture: for tests of what is around a captioner.

    python tests/stub_captioner.py PROJECT DELAY PHOTOS...

prints "begins", then updates a project with it, DELAY seconds an image.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from captioner.annotate.paths import given_images
from captioner.annotate.update import Loaded, Request, Summary, update
from captioner.decoding.options import GenerationOptions
from captioner.distributed import Process
from captioner.infer.caption import Caption, Token
from captioner.model.preprocessing import Preprocessing


class StubCaptioner:
    """Says "colour 12 200 3" of a picture, at once.

    Attributes:
        captioned: how many pictures it was given.
    """

    name, precision, batch_size = "stub", "fp32", 4
    preprocessing = Preprocessing(8)

    def __init__(self, delay: float = 0.0, version: str = "1") -> None:
        self.delay, self.captioned = delay, 0
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        (self.folder / "config.json").write_text(version)

    def stream(self, options: GenerationOptions) -> "StubCaptioner":
        return self

    def add(self, images: list[np.ndarray]) -> list[Caption]:
        self.captioned += len(images)
        time.sleep(self.delay * len(images))
        means = [(image.mean((1, 2)) + 1) * 127.5 for image in images]
        return [self.caption(mean.round().astype(int).tolist()) for mean in means]

    def caption(self, mean: list[int]) -> Caption:
        return Caption("colour {} {} {}".format(*mean), 0.5, (Token("colour", -0.5),))

    def finish(self) -> list[Caption]:
        return []


def update_with(captioner: Any, project: Path | str, *paths: Path | str, **request: Any) -> Summary:
    """Bring a project up to date with images, in this process."""
    names = [str(path) for path in paths]
    load = lambda count, precision: Loaded(captioner, GenerationOptions(), captioner.batch_size, [captioner.folder])  # noqa: E731
    summary = update(Path(project), lambda: given_images(names), Request(**request), load, Process(), num_workers=2)
    assert summary is not None
    return summary


if __name__ == "__main__":
    print("begins", flush=True)
    print(*update_with(StubCaptioner(float(sys.argv[2])), sys.argv[1], *sys.argv[3:]).lines(), sep="\n")
