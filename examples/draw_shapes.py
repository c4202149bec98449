"""Draw a small captioning data set for tests and first experiments: two coloured shapes and their arrangement.

    python examples/draw_shapes.py shapes/ --images 4000
    accelerate launch train.py --config configs/tiny.yaml

Each picture has exactly one correct caption ("a red circle above a blue square").
"""

import argparse
import csv
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 200, 40)}
SHAPES = ("circle", "square", "triangle")
SIZE = 32


def draw_shapes(folder: Path, images: int, seed: int = 0) -> None:
    """Write PNG files and `captions.csv` (image, caption, split); one image in five is for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "split"])
        for number in range(images):
            image, caption = draw_pair(draw)
            name = f"{number:05}.png"
            image.save(folder / name)
            rows.writerow([name, caption, "val" if number % 5 == 4 else "train"])


def draw_pair(draw: random.Random) -> tuple[Image.Image, str]:
    image = Image.new("RGB", (SIZE, SIZE), tuple(draw.randrange(225, 256) for _ in range(3)))
    relation = draw.choice(("above", "left of"))
    first, second = [(draw.choice(list(COLORS)), draw.choice(SHAPES)) for _ in range(2)]
    near, far, across = SIZE // 4, 3 * SIZE // 4, SIZE // 2
    centres = [(across, near), (across, far)] if relation == "above" else [(near, across), (far, across)]
    for (color, shape), (x, y) in zip((first, second), centres, strict=True):
        shift, radius = draw.randrange(-3, 4), draw.randrange(5, 8)
        x, y = (x + shift, y) if relation == "above" else (x, y + shift)
        _draw_shape(ImageDraw.Draw(image), shape, COLORS[color], x, y, radius)
    return image, f"a {' '.join(first)} {relation} a {' '.join(second)}"


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: str, color: tuple[int, ...], x: int, y: int, radius: int) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        canvas.ellipse(box, fill=color)
    elif shape == "square":
        canvas.rectangle(box, fill=color)
    else:
        canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=color)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw_shapes(arguments.folder, arguments.images, arguments.seed)
