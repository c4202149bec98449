"""Caption Flickr8k's validation photos by torch and by ONNX Runtime, in fp32 on a CPU; print one JSON line a search.

    CAPTIONER_FLICKR8K=folder python benchmarks/backends.py [--model M] [--count 1000]

A line has the captions and tokens that differ, by how much the log-probabilities of equal tokens differ at most, and of
each backend the CIDEr and the photos a second, reading not included. `examples` shows captions that differ.
"""

import argparse
import json
import os
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from captioner import Caption, Captioner
from captioner.config import SourceConfig
from captioner.data.images import load_image
from captioner.data.sources import load_samples
from captioner.metrics.score import score_captions

SEARCHES = {"greedy": 1, "beams_3": 3}
BACKENDS = ("torch", "onnx")
BATCH = 16


def caption(captioner: Captioner, images: list[np.ndarray], num_beams: int) -> tuple[list[Caption], float]:
    """Captions, and the seconds that they took."""
    start = time.perf_counter()
    stream = captioner.stream(captioner.options(num_beams=num_beams))
    captions = [one for first in range(0, len(images), BATCH) for one in stream.add(images[first : first + BATCH])]
    return captions + stream.finish(), time.perf_counter() - start


def compare(one: list[Caption], other: list[Caption]) -> dict[str, Any]:
    differing = [(a.text, b.text) for a, b in zip(one, other, strict=True) if texts(a) != texts(b)]
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip_longest(texts(a), texts(b))]
    log_probs = [
        abs(x.log_prob - y.log_prob)
        for a, b in zip(one, other, strict=True)
        if texts(a) == texts(b)
        for x, y in zip(a.tokens, b.tokens, strict=True)
    ]
    return {
        "captions_that_differ": len(differing),
        "tokens": len(pairs),
        "tokens_that_differ": sum(a != b for a, b in pairs),
        "log_probs_differ_by": float(f"{max(log_probs):.1e}"),
        "examples": differing[:3],
    }


def texts(caption: Caption) -> list[str]:
    return [token.text for token in caption.tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    folder = Path(os.environ["CAPTIONER_FLICKR8K"])
    samples, _ = load_samples(SourceConfig(path=str(folder / "dataset_flickr8k.json"), split="val"))
    samples = samples[: options.count]
    captioners = {name: Captioner.from_pretrained(options.model, device="cpu", backend=name) for name in BACKENDS}
    preprocessing = captioners["onnx"].preprocessing
    images = [preprocessing(load_image(sample.image, preprocessing.min_size)) for sample in samples]
    references = {sample.id: sample.captions for sample in samples}
    print(json.dumps(machine()), flush=True)
    for search, num_beams in SEARCHES.items():
        line: dict[str, Any] = {"search": search, "photos": len(images), "load_average": os.getloadavg()[0]}
        found = {name: caption(captioner, images, num_beams) for name, captioner in captioners.items()}
        for name, (captions, seconds) in found.items():
            by_id = {sample.id: one.text for sample, one in zip(samples, captions, strict=True)}
            scores = score_captions(by_id, references, metrics=["CIDEr"])
            line[name] = {
                "CIDEr": round(scores.corpus["CIDEr"], 4),
                "photos_per_s": round(len(images) / seconds, 1),
            }
        print(json.dumps(line | compare(found["torch"][0], found["onnx"][0])), flush=True)


if __name__ == "__main__":
    main()
