"""The folder of a training: the files in it, and what a new or a resumed training finds there."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from accelerate import Accelerator

from captioner.config import RunConfig
from captioner.errors import CaptionerError
from captioner.files import check_file, recover_folder, reporting, whole_file

FILES = ("tokenizer.model", "log.jsonl", "report.html")
LEFTOVERS = (
    *(f"{name}{ending}" for name in FILES for ending in ("", ".part", ".*.tmp")),
    *("best.part", "last.part", "features/*.npy", "features/*.part", "streamed/*.tar", "streamed/*.tmp"),
)
"""What a training that never wrote a checkpoint may have left in its folder."""


@dataclass(frozen=True)
class RunFolder:
    """The output folder of a training."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe as run."""
        return self.path / "config.yaml"

    @property
    def best(self) -> Path:
        """A model folder: the weights with the best validation score."""
        return self.path / "best"

    @property
    def last(self) -> Path:
        """A checkpoint: everything that resuming needs."""
        return self.path / "last"

    @property
    def log(self) -> Path:
        """One JSON object for each step and validation."""
        return self.path / "log.jsonl"

    @property
    def report(self) -> Path:
        """A page to follow the training by."""
        return self.path / "report.html"

    @property
    def features(self) -> Path:
        """Cached trunk features."""
        return self.path / "features"

    @property
    def streamed(self) -> Path:
        """Data sets that were streamed, as shards."""
        return self.path / "streamed"

    def prepare(self, resume: bool, accelerator: Accelerator) -> None:
        """Check that there is a checkpoint to resume, or make an empty folder for a new training.

        Raises:
            CaptionerError: there is nothing to resume, or a new training would overwrite something; the folder is not
                writable.
        """
        main = accelerator.is_main_process
        with accelerator.main_process_first():
            if main:
                recover_folder(self.best)
                recover_folder(self.last)
        if resume and not self.last.exists():
            raise CaptionerError(
                f"{self.path}: nothing to resume, there is no {self.last}: to begin, leave out --resume"
            )
        if self.last.exists() and not resume:
            raise CaptionerError(f"{self.path} holds a training: pass --resume, or set another output_dir")
        if self.best.exists() and not resume:
            raise CaptionerError(f"{self.path} holds a model, {self.best}: move it away, or set another output_dir")
        with accelerator.main_process_first(), reporting(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if main:
                check_file(self.recipe)
            if main and not resume:
                self.clear()

    def clear(self) -> None:
        """Remove what an earlier training left, which may have had other data and settings."""
        for pattern in LEFTOVERS:
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def write_recipe(self, config: RunConfig) -> None:
        with whole_file(self.recipe) as file:
            file.write(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False))

    def truncate_log(self, step: int) -> None:
        """Drop the lines that were logged after `step`, and lines that a killed training left incomplete."""
        if self.log.exists():
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            with whole_file(self.log) as file:
                file.writelines(line + "\n" for line in lines if _step_of(line) <= step)


def _step_of(line: str) -> float:
    """The step of a line of the log; infinity if the line is incomplete."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
