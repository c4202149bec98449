"""Do heat maps point at what a word names, and does the word depend on what they point at?

    CAPTIONER_FLICKR8K=FOLDER python benchmarks/explain.py [--sheets DIR]

Pointing: a small ViT, a Swin and a hybrid of a CNN and a ViT learn to describe drawn shapes, a minute or two each. Then
the peak of the heat map of each word that names a shape must lie in that shape, in 200 pictures that the model has not
seen.

Deletion: in 200 photos that the bundled model was not trained on, the tenth of the image where a word's heat is highest
is replaced by the mean colour, and in its place as many random patches of the same size. The word's log-probability
must fall further for the heat than for random patches: a paired test over photos, with random flips of sign.

Prints one JSON line, with 95 % bootstrap intervals over pictures and photos. With --sheets, it also draws the heat maps
of eight of the photos, and of the example photos: the picture in docs/trust.md.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from machine import machine
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from draw_shapes import COLORS, SHAPES, draw_pair, draw_shapes  # noqa: E402

from captioner import Captioner, load_config  # noqa: E402
from captioner.infer.caption import Caption  # noqa: E402
from captioner.infer.explain import METHODS  # noqa: E402
from captioner.infer.torch_backend import TorchBackend  # noqa: E402
from captioner.infer.words import tokens_of_words  # noqa: E402
from captioner.training.trainer import train  # noqa: E402

ENCODERS: dict[str, list[str]] = {
    "vit": ["model.encoder_kwargs={patch_size: 4, embed_dim: 64, depth: 2, num_heads: 4}"],
    "swin": [
        "model.encoder_name=swin_tiny_patch4_window7_224",
        "model.encoder_kwargs={patch_size: 4, embed_dim: 64, depths: [2], num_heads: [4], window_size: 4}",
    ],
    "hybrid": [
        "model.encoder_name=convnext_atto",
        "model.encoder_kwargs={patch_size: 2, depths: [1, 1, 1, 1], dims: [32, 64, 64, 64], output_stride: 8}",
        "model.encoder_layers=1",
        "model.image_size=64",
    ],
}
"""Changes to configs/tiny.yaml: each gives a grid of 8 x 8."""

EPOCHS = 12
FUNCTION_WORDS = frozenset("a an the of in on at to with and is are by for from its his her their into over up".split())
MASKED = 0.1
RANDOM_MASKS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("CAPTIONER_FLICKR8K")
    parser.add_argument("--photos", type=Path, default=default, help="Flickr8k in Karpathy's layout")
    parser.add_argument("--count", type=int, default=200, help="pictures, and photos")
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--sheets", type=Path, help="a folder for pictures of heat maps")
    options = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "explain", "machine": machine(), "pictures": options.count}
    with tempfile.TemporaryDirectory() as scratch:
        report["pointing"] = {name: pointing(name, Path(scratch), options.count) for name in options.encoders}
    if options.photos:
        photos = validation_photos(options.photos)[: options.count]
        captioner = Captioner.from_pretrained(device="cpu", dtype="float32")
        report["deletion"] = {method: deletion(captioner, photos, method) for method in METHODS}
        if options.sheets:
            draw_sheets(captioner, photos[:8], options.sheets / "flickr8k.jpg")
            draw_sheets(captioner, sorted((ROOT / "examples/photos").glob("*.jpg")), options.sheets / "explained.jpg")
    print(json.dumps(report))


# ---- pointing ------------------------------------------------------------------------------------------------------


def pointing(encoder: str, scratch: Path, count: int) -> dict[str, Any]:
    """The share of words that name a shape whose peak lies in it, by method."""
    shapes = scratch / "shapes"
    if not shapes.exists():
        draw_shapes(shapes, images=4000)
    overrides = [
        *(f"data.{part}.path={shapes / 'captions.csv'}" for part in ("train", "validation")),
        *(f"output_dir={scratch / encoder}", f"phases.0.epochs={EPOCHS}"),
        *ENCODERS[encoder],
    ]
    captioner = Captioner.from_pretrained(train(load_config(ROOT / "configs/tiny.yaml", overrides)), device="cpu")
    draw = random.Random("unseen")
    pictures = [draw_pair(draw) for _ in range(count)]
    right = sum(captioner(picture).text == caption for picture, caption in pictures)
    hits = {method: [picture_hits(captioner, *pair, method) for pair in pictures] for method in METHODS}
    return {"captions_right": right / count} | {method: share_with_interval(each) for method, each in hits.items()}


def picture_hits(captioner: Captioner, picture: Image.Image, expected: str, method: str) -> list[bool]:
    """For each shape that the caption names rightly, whether the peak of its word lies in it."""
    explanation = captioner.explain(picture, method=method)
    words, wanted = explanation.caption.text.split(), expected.split()
    if len(words) != len(wanted):
        return []
    masks = iter(shape_masks(picture, expected))
    hits = []
    for number, (word, true) in enumerate(zip(words, wanted, strict=True)):
        if true in SHAPES:
            mask = next(masks)
            if word == true:
                x, y = explanation.peak(number)
                hits.append(bool(mask[y, x]))
    return hits


def shape_masks(picture: Image.Image, caption: str) -> list[np.ndarray]:
    """Which pixels [height, width] belong to the first shape that a caption names, and to the second."""
    pixels, size = np.asarray(picture), picture.width
    is_above = "above" in caption
    along = np.indices(pixels.shape[:2])[0 if is_above else 1]
    colors = [word for word in caption.split() if word in COLORS]
    halves = along < size // 2, along >= size // 2
    return [(pixels == COLORS[color]).all(-1) & half for color, half in zip(colors, halves, strict=True)]


# ---- deletion ------------------------------------------------------------------------------------------------------


def validation_photos(folder: Path) -> list[Path]:
    listed = json.loads((folder / "dataset_flickr8k.json").read_text(encoding="utf-8"))["images"]
    return [folder / "images" / image["filename"] for image in listed if image["split"] == "val"]


def deletion(captioner: Captioner, photos: list[Path], method: str) -> dict[str, Any]:
    """How far words' log-probabilities fall when the patches their heat maps point at are masked, or random patches."""
    drops = np.array([photo_drops(captioner, photo, method, number) for number, photo in enumerate(photos)])
    difference = drops[:, 0] - drops[:, 1]
    generator = np.random.default_rng(0)
    flipped = (generator.choice([-1, 1], (10_000, len(difference))) * difference).mean(1)
    resampled = generator.choice(difference, (1000, len(difference))).mean(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {
        "photos": len(photos),
        "drop_where_heat_is": round(float(drops[:, 0].mean()), 4),
        "drop_at_random": round(float(drops[:, 1].mean()), 4),
        "difference": round(float(difference.mean()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "photos_where_heat_matters_more": round(float((difference > 0).mean()), 3),
        "p_value": float((1 + (np.abs(flipped) >= abs(difference.mean())).sum()) / (1 + len(flipped))),
    }


def photo_drops(captioner: Captioner, photo: Path, method: str, seed: int) -> tuple[float, float]:
    """Mean fall over the content words of a photo's caption: masked by heat, and at random."""
    explanation = captioner.explain(photo, method=method)
    backend = cast(TorchBackend, captioner.backend)
    pixels = torch.from_numpy(captioner.preprocessing(explanation.photo))
    maps = explanation.maps
    content = [i for i, word in enumerate(explanation.words) if word.text.lower() not in FUNCTION_WORDS]
    count = round(MASKED * maps[0].size)
    by_heat = [np.argsort(-maps[word], axis=None)[:count] for word in content]
    generator = np.random.default_rng(seed)
    at_random = [generator.permutation(maps[0].size)[:count] for _ in range(RANDOM_MASKS)]
    batch = torch.stack([pixels, *(masked(pixels, cells, maps.shape[1:]) for cells in (*by_heat, *at_random))])
    log_probs = word_log_probs(backend, explanation.caption, batch)[:, content]
    falls = log_probs[0] - log_probs[1:]
    return float(np.diagonal(falls[: len(content)]).mean()), float(falls[len(content) :].mean())


def masked(pixels: torch.Tensor, cells: np.ndarray, grid: tuple[int, ...]) -> torch.Tensor:
    """[3, height, width] with these cells of a grid at the mean colour, which is 0."""
    hidden = torch.zeros(grid[0] * grid[1])
    hidden[torch.from_numpy(cells.copy())] = 1
    mask = torch.nn.functional.interpolate(hidden.view(1, 1, *grid), size=pixels.shape[1:], mode="nearest")[0]
    return pixels * (1 - mask)


@torch.inference_mode()
def word_log_probs(backend: TorchBackend, caption: Caption, pixel_values: torch.Tensor) -> np.ndarray:
    """log p of each word of a caption, given each image [B, 3, height, width] and the words before -> [B, words]."""
    tokens = [backend.tokenizer.token_to_id(token.text) for token in caption.tokens]
    inputs = torch.tensor([backend.start, *tokens[:-1]]).expand(len(pixel_values), -1)
    logits = backend.model(pixel_values=pixel_values, decoder_input_ids=inputs).logits.float()
    target = torch.tensor(tokens).expand(len(pixel_values), -1)
    log_probs = logits.log_softmax(-1).gather(-1, target[..., None])[..., 0].numpy()
    places = [place for _, place in tokens_of_words(caption.text, [token.text for token in caption.tokens])]
    return np.stack([log_probs[:, place].sum(1) for place in places], axis=1)


# ---- both ----------------------------------------------------------------------------------------------------------


def share_with_interval(hits: list[list[bool]]) -> dict[str, Any]:
    """Of words, with an interval over pictures."""
    counts = np.array([[sum(each), len(each)] for each in hits], np.float64)
    generator = np.random.default_rng(0)
    resampled = counts[generator.integers(0, len(counts), (1000, len(counts)))].sum(1)
    low, high = np.percentile(resampled[:, 0] / resampled[:, 1], [2.5, 97.5])
    total = counts.sum(0)
    return {"words": int(total[1]), "share": round(total[0] / total[1], 4), "interval": [round(low, 4), round(high, 4)]}


def draw_sheets(captioner: Captioner, photos: list[Path], output: Path) -> None:
    """Draw the photos' sheets below one another."""
    output.parent.mkdir(parents=True, exist_ok=True)
    sheets = [captioner.explain(photo).sheet() for photo in photos]
    picture = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        picture.paste(sheet, (0, top))
        top += sheet.height
    picture.save(output, quality=85, optimize=True)


if __name__ == "__main__":
    main()
