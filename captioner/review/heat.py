"""Heat maps on demand, from the model that wrote a caption."""

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from captioner.annotate.project import Project
from captioner.annotate.project_records import ProjectImage
from captioner.errors import CaptionerError
from captioner.infer.caption import Caption, Token
from captioner.infer.captioner import Captioner
from captioner.infer.words import Word
from captioner.review.thumbnails import source_of

KEPT = 200
"""Answers that are kept, of about 10 kB each."""


class HeatMaps:
    """Explains captions with one model, which is loaded when the first heat map is asked for.

    Answers are made one at a time. May be used from several threads.
    """

    def __init__(self, project: Project, model: str | None) -> None:
        """`model`: a folder or a Hub id; None: the model that wrote the project's latest captions."""
        self.project = project
        self.model = model
        self._lock = threading.Lock()
        self._captioner: Captioner | None = None
        self._failure: str | None = None
        self._kept: OrderedDict[tuple[int, int | None], dict[str, Any]] = OrderedDict()

    def of(self, image: ProjectImage) -> dict[str, Any]:
        """Words with their maps, as rows of integers 0 to 255, and the part of the photo that the maps cover, as shares
        of its width and height: left, top, right, bottom.

        Raises:
            CaptionerError: the photo or the model cannot be read, or the model cannot explain itself.
        """
        key = image.id, image.suggestion
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._explain(image)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def _explain(self, image: ProjectImage) -> dict[str, Any]:
        captioner = self._loaded()
        explanation = captioner.explain(source_of(self.project, image), caption=self._written_by(captioner, image))
        width, height = explanation.photo.size
        left, top, right, bottom = explanation.window
        heat = explanation.maps / np.maximum(explanation.maps.max((1, 2), keepdims=True), 1e-12)
        return {
            "text": explanation.caption.text,
            "words": [[word.text, word.confidence] for word in explanation.words],
            "maps": np.rint(255 * heat).astype(int).tolist(),
            "window": [left / width, top / height, right / width, bottom / height],
        }

    def _written_by(self, captioner: Captioner, image: ProjectImage) -> Caption | None:
        """The image's suggestion, if this model wrote it; None: the model has to say what it sees."""
        for stored in self.project.captions(image.id):
            if stored.id == image.suggestion and stored.writer.name == captioner.name and stored.tokens:
                tokens = tuple(Token(*token) for token in stored.tokens)
                words = tuple(Word(*word) for word in stored.words)
                return Caption(stored.text, stored.confidence or 0.0, tokens, words=words)
        return None

    def _loaded(self) -> Captioner:
        """Load the model once; a failure is final, since trying again would take as long."""
        if self._failure:
            raise CaptionerError(self._failure)
        if self._captioner is None:
            try:
                self._captioner = Captioner.from_pretrained(self.model or self._writer())
            except CaptionerError as error:
                self._failure = f"no heat maps: {error}"
                raise CaptionerError(self._failure) from error
        return self._captioner

    def _writer(self) -> str:
        rows = self.project.rows(
            """SELECT name FROM captions JOIN writers ON writers.id = writer WHERE kind = 'model'
            ORDER BY captions.id DESC LIMIT 1"""
        )
        if not rows:
            raise CaptionerError("no model has written captions here")
        return str(rows[0]["name"])
