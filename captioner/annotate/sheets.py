"""A picture for each photo: its words with their heat maps. `captioner annotate --explain DIR`."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from captioner.data.images import ImageInput
from captioner.errors import CaptionerError
from captioner.files import whole_file
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner
from captioner.infer.explain import METHODS


@dataclass(frozen=True)
class Sheets:
    """Where the sheets go, and how heat maps are made: one of `captioner.infer.explain.METHODS`."""

    folder: Path
    method: str = "attention"

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            CaptionerError: it cannot be made, or there is no such method.
        """
        if self.method not in METHODS:
            raise CaptionerError(f"--explain-method {self.method!r}: choose {', '.join(METHODS)}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaptionerError(f"{self.folder}: {error.strerror}") from error

    def draw(self, captioner: Captioner, image: ImageInput, caption: Caption) -> None:
        """Explain what the captioner said of an image."""
        buffer = io.BytesIO()
        captioner.explain(image, caption=caption, method=self.method).sheet().save(buffer, "JPEG", quality=88)
        with whole_file(self.path(str(image))) as file:
            file.buffer.write(buffer.getvalue())

    def path(self, image: str) -> Path:
        """The name of the photo, and a digest of its path, which tells photos of the same name apart."""
        digest = hashlib.sha256(image.encode(errors="surrogateescape")).hexdigest()[:8]
        return self.folder / f"{Path(image).stem[:100]}-{digest}.jpg"
