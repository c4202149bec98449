"""A picture of how far confidences can be trusted: the reliability diagram and the risk-coverage curve."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captioner.metrics.trust import Trust, reliability

SIDE, MARGIN, GAP, TEXT = 420, 64, 40, 15
INK, GRID, BLUE, ORANGE = "#222222", "#dddddd", "#2b6cb0", "#dd6b20"


def trust_chart(trust: Trust) -> Image.Image:
    """Left, mean confidence against the share of acceptable captions in each bin; right, coverage against risk."""
    picture = Image.new("RGB", (2 * (SIDE + MARGIN + GAP), SIDE + 2 * MARGIN), "white")
    bins = reliability(trust.confidence, trust.acceptable)
    left = Plot(picture, MARGIN, "Reliability", "confidence", "share of acceptable captions")
    left.line(np.array([0, 1]), np.array([0, 1]), GRID, width=3)
    left.line(bins.confidence, bins.share, BLUE, width=2)
    left.dots(bins.confidence, bins.share, BLUE)
    left.note(f"calibration error {trust.ece:.3f}\n(plug-in {trust.plug_in_ece:.3f})", at_top=True)
    right = Plot(
        picture, 2 * MARGIN + SIDE + GAP, "Risk and coverage", "share of captions kept", "share not acceptable"
    )
    coverage, risk = trust.risk_coverage
    right.line(np.array([0, 1]), np.full(2, risk[-1]), GRID, width=3)
    right.line(coverage, risk, ORANGE, width=2)
    right.note(f"area {trust.aurc:.3f}, AUROC {trust.auroc:.3f}", at_top=False)
    return picture


class Plot:
    """A square of 0 to 1 by 0 to 1 in a picture."""

    def __init__(self, picture: Image.Image, left: int, title: str, across: str, up: str) -> None:
        self.draw, self.left, self.top = ImageDraw.Draw(picture), left, MARGIN
        self.font = ImageFont.load_default(TEXT)  # Pillow's own: the same everywhere
        for value in np.linspace(0, 1, 6):
            (x, y), (left_edge, bottom) = self.point(value, value), self.point(0, 0)
            self.draw.line([(x, self.top), (x, bottom)], GRID)
            self.draw.line([(left_edge, y), (left_edge + SIDE, y)], GRID)
            self.draw.text((x, bottom + 6), f"{value:.1f}", INK, self.font, anchor="ma")
            self.draw.text((left_edge - 8, y), f"{value:.1f}", INK, self.font, anchor="rm")
        self.draw.text((left + SIDE / 2, self.top - 34), title, INK, ImageFont.load_default(TEXT + 4), anchor="mm")
        self.draw.text((left + SIDE / 2, self.top + SIDE + 38), across, INK, self.font, anchor="mm")
        self.draw.text((left, self.top - 14), up, "#666666", self.font, anchor="lm")

    def point(self, x: float, y: float) -> tuple[float, float]:
        return self.left + SIDE * float(x), self.top + SIDE * (1 - float(y))

    def line(self, x: np.ndarray, y: np.ndarray, color: str, width: int) -> None:
        self.draw.line([self.point(*pair) for pair in zip(x, y, strict=True)], color, width, joint="curve")

    def dots(self, x: np.ndarray, y: np.ndarray, color: str) -> None:
        for pair in zip(x, y, strict=True):
            self.draw.circle(self.point(*pair), 4, color)

    def note(self, text: str, at_top: bool) -> None:
        place = (self.left + 12, self.top + 12) if at_top else (self.left + SIDE - 12, self.top + SIDE - 12)
        self.draw.text(place, text, INK, self.font, anchor="la" if at_top else "rd")
