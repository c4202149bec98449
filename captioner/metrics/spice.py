"""SPICE, by the official Java program of the optional package pycocoevalcap; there is no other implementation of it."""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captioner.errors import CaptionerError

_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def spice_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """SPICE of each image's tokenised caption, [images]; the score of a corpus is the mean.

    Source: P. Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation", ECCV 2016. Raises
    CaptionerError where pycocoevalcap, Java, or the models that the program reads are missing; nothing is downloaded.
    """
    found = find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise CaptionerError("SPICE needs pycocoevalcap: pip install 'captioner[metrics]'")
    if shutil.which("java") is None:
        raise CaptionerError("SPICE needs Java: no `java` on the path")
    library = Path(found.submodule_search_locations[0]) / "spice" / "lib"
    if missing := [name for name in _MODELS if not (library / name).is_file()]:
        raise CaptionerError(
            f"SPICE needs {' and '.join(missing)} in {library}: "
            "they are in http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
        )
    from pycocoevalcap.spice.spice import Spice

    images = range(len(hypotheses))
    _, scores = Spice().compute_score(
        {image: list(references[image]) for image in images}, {image: [hypotheses[image]] for image in images}
    )
    return np.array([score["All"]["f"] for score in scores])
