"""Draw the README's picture: four photos in a row, each with the caption that the bundled model gives it.

    python examples/readme_picture.py

Run it again whenever the bundled model changes.
"""

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from captioner import Captioner

ROOT = Path(__file__).parents[1]
PHOTOS = [ROOT / "examples" / "photos" / name for name in ("cliff.jpg", "cameraman.jpg", "dune.jpg", "oath.jpg")]
PICTURE = ROOT / "docs" / "images" / "captions.jpg"

SIDE, GAP = 300, 16
TEXT_SIZE, LINE_HEIGHT, CHARACTERS_PER_LINE, LINES = 20, 27, 28, 2


def main() -> None:
    captions = Captioner.from_pretrained()(PHOTOS)
    font = ImageFont.load_default(TEXT_SIZE)  # part of Pillow, so the picture is the same everywhere
    size = (len(PHOTOS) * (SIDE + GAP) + GAP, GAP + SIDE + GAP + LINES * LINE_HEIGHT + GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for column, (path, caption) in enumerate(zip(PHOTOS, captions, strict=True)):
        left = GAP + column * (SIDE + GAP)
        with Image.open(path) as photo:
            picture.paste(ImageOps.fit(photo.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS), (left, GAP))
        for row, line in enumerate(textwrap.wrap(caption.text, CHARACTERS_PER_LINE)[:LINES]):
            draw.text((left, GAP + SIDE + GAP // 2 + row * LINE_HEIGHT), line, "#222222", font)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    picture.save(PICTURE, quality=88, optimize=True)


if __name__ == "__main__":
    main()
