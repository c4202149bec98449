"""Where in a photo the words of its caption come from: heat maps, and the sheet that shows them.

Shapes: T tokens, W words, P image tokens in R rows and C columns.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captioner.infer.caption import Caption
from captioner.infer.words import Word, tokens_of_words

METHODS = ("attention", "gradient")
"""How a heat map is made:

- "attention": the weights of the decoder's cross-attention when it writes the word (Xu et al. 2015,
  https://arxiv.org/abs/1502.03044, section 5.4), averaged over the heads of its pointing layers.
- "gradient": those weights times what the word's log-probability gains by them, where it gains (Chefer et al. 2021,
  https://arxiv.org/abs/2103.15679, equations 5 and 11), averaged over heads and layers. It leaves out what the decoder
  looks at without using it. Exported models have no gradients.
"""

CELL, GAP, TEXT, LINE = 200, 12, 18, 24
COLUMNS = 6


@dataclass(frozen=True)
class Explanation:
    """A caption and a heat map for each of its words.

    Attributes:
        photo: upright, RGB.
        caption: what the model says of it.
        words: the caption's words with their confidences.
        maps: [W, R, C], heat in the cells of the model's grid, each map of sum 1.
        window: the part of the photo that the grid covers: left, top, right, bottom in its pixels.
        method: one of `METHODS`.
    """

    photo: Image.Image
    caption: Caption
    words: tuple[Word, ...]
    maps: np.ndarray
    window: tuple[float, float, float, float]
    method: str

    def heat_map(self, word: int) -> np.ndarray:
        """Heat over the photo's pixels [height, width], 0 to 1; 0 where the model sees nothing of the photo."""
        left, top, right, bottom = (round(edge) for edge in self.window)
        size = max(1, right - left), max(1, bottom - top)
        heat = Image.fromarray((self.maps[word] / self.maps[word].max()).astype(np.float32))
        canvas = Image.new("F", self.photo.size)
        canvas.paste(heat.resize(size, Image.Resampling.BICUBIC), (left, top))
        return np.asarray(canvas).clip(0, 1)

    def peak(self, word: int) -> tuple[int, int]:
        """The pixel (x, y) of the photo where a word's heat is highest."""
        heat = self.heat_map(word)
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        return int(x), int(y)

    def sheet(self) -> Image.Image:
        """One picture: the photo with its caption, then for each word the photo under its heat map, the word, and its
        probability."""
        cells = [(self.photo, "", f"{self.caption.confidence:.0%}")]
        cells += [(self._under_heat(i), word.text, f"{word.confidence:.0%}") for i, word in enumerate(self.words)]
        columns = min(COLUMNS, len(cells))
        rows = math.ceil(len(cells) / columns)
        height = CELL + LINE + GAP
        sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP, LINE + GAP + rows * height + GAP), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)  # Pillow's own: the same everywhere
        draw.text((GAP, GAP), fitted(draw, self.caption.text, font, sheet.width - 2 * GAP), "#111111", font)
        for place, (picture, word, probability) in enumerate(cells):
            left, top = GAP + place % columns * (CELL + GAP), LINE + 2 * GAP + place // columns * height
            thumbnail = picture.copy()
            thumbnail.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(thumbnail, (left + (CELL - thumbnail.width) // 2, top + (CELL - thumbnail.height) // 2))
            room = CELL - draw.textlength(probability, font) - GAP
            draw.text(
                (left, top + CELL), fitted(draw, word or "caption", font, room), "#111111" if word else "#777777", font
            )
            draw.text((left + CELL, top + CELL), probability, "#777777", font, anchor="ra")
        return sheet

    def _under_heat(self, word: int) -> Image.Image:
        """Bright and warm where the heat is, dim elsewhere."""
        heat = self.heat_map(word)[..., None]
        pixels = np.asarray(self.photo, np.float32)
        gray = pixels.mean(-1, keepdims=True)
        dim = 0.45 * gray + 0.25 * pixels
        warm = 0.6 * pixels + 0.4 * np.array([255, 110, 0], np.float32)
        return Image.fromarray((dim * (1 - heat) + warm * heat).clip(0, 255).astype(np.uint8))


def explanation_of(
    photo: Image.Image,
    caption: Caption,
    token_maps: np.ndarray,
    window: tuple[float, float, float, float],
    method: str,
) -> Explanation:
    """Join the maps of tokens [T, R, C] to maps of words: the mean over a word's tokens. A word without any heat, as
    gradients can leave it, has the same everywhere."""
    places = [place for _, place in tokens_of_words(caption.text, [token.text for token in caption.tokens])]
    maps = np.stack([token_maps[place].mean(0) for place in places]) if places else token_maps[:0]
    heat = maps.sum((1, 2), keepdims=True)
    maps = np.divide(maps, heat, out=np.full_like(maps, 1 / token_maps[0].size if places else 0), where=heat > 0)
    return Explanation(photo, caption, caption.words, maps, window, method)


def fitted(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> str:
    """The text, cut with an ellipsis where it is wider than this many pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
