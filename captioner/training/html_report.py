"""Writes the page of a running training: photos with their previous and current captions, and curves over the steps.

The page is a single file: photos are JPEG data URIs, curves are SVG, and there is no script. It uses no charting
library: matplotlib draws neither tooltips nor a dark mode, and interactive libraries would put megabytes of script into
a page that every validation rewrites and that must work offline.
"""

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from captioner.files import whole_file

THUMBNAIL = 224  # pixels, the longer side
COLUMNS = 300  # points of a line; if there are more steps, a point is the mean of several
WIDTH, HEIGHT = 640, 290
LEFT, RIGHT, TOP, BOTTOM = 74, WIDTH - 30, 26, HEIGHT - 48  # the area between the axes
MARKED = 50  # lines with at most so many points show them as dots
COLORS = 8


@dataclass(frozen=True)
class ReportPhoto:
    """A validation photo; `before` is its caption at the previous validation, None at the first."""

    image: Image.Image
    name: str
    reference: str
    before: str | None
    now: str


class Chart(NamedTuple):
    """A chart with a line for each `key/NAME` in the log, and one for `key` itself, labelled `whole`."""

    key: str
    title: str
    unit: str
    whole: str = "total"
    logarithmic: bool = False
    validation: bool = False  # logged by validations; otherwise by training steps


SCORES = Chart("validation", "Validation scores", "score", validation=True)
CHARTS = (
    SCORES,
    Chart("validation_loss", "Validation loss", "nats a token", whole="captions", validation=True),
    Chart("loss", "Training loss", "loss"),
    Chart("reward", "Reward of drawn captions", "CIDEr-D", whole="mean"),
    Chart("rate", "Learning rates", "rate", logarithmic=True),
    Chart("grad_norm", "Gradient norms", "norm", logarithmic=True),
)


@dataclass
class Column:
    """Values logged over adjacent steps: sums and counts by key; the steps themselves are under `step`."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, key: str, value: float) -> None:
        self.sums[key] += value
        self.counts[key] += 1

    def mean(self, key: str) -> float:
        return self.sums[key] / self.counts[key]


@dataclass(frozen=True)
class Log:
    """The part of a log that the page shows; its size does not grow with the log."""

    last_step: int
    training: defaultdict[int, Column] = field(default_factory=lambda: defaultdict(Column))
    validation: defaultdict[int, Column] = field(default_factory=lambda: defaultdict(Column))
    latest: dict[str, float] = field(default_factory=dict)
    best: dict[str, tuple[float, int]] = field(default_factory=dict)  # highest value and its step
    phases: list[tuple[int, str]] = field(default_factory=list)  # first step and name


class Scale(NamedTuple):
    """Maps values in [low, high] to [start, end] on the page; lower values map to `start`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = map(math.log if self.logarithmic else float, (self.low, self.high, max(value, self.low)))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return three to seven round values."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
            for digits in ((1, 2, 5), (1,)):
                ticks = [digit * 10.0**power for power in powers for digit in digits]
                ticks = [tick for tick in ticks if self.low <= tick <= self.high]
                if 3 <= len(ticks) <= 7:
                    return ticks
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / 5))
        gap = next(gap for gap in (power, 2 * power, 5 * power, 10 * power) if (self.high - self.low) / gap <= 6)
        return [gap * i for i in range(math.ceil(self.low / gap), math.floor(self.high / gap) + 1)]


def write_report(path: Path, title: str, log: Path, photos: Sequence[ReportPhoto]) -> None:
    """Write the page; the previous one stays until the new one is complete.

    `log` holds one JSON object per line: `step`, `phase` and values named as in `CHARTS`. Other lines, such as one that
    a killed training left incomplete, are ignored.
    """
    page = _page(title, _read_log(log), photos)
    with whole_file(path) as file:
        file.write(page.encode("utf-8", "replace").decode("utf-8"))  # file names may not be valid text


def _read_log(path: Path) -> Log:
    log = Log(max((entry["step"] for entry in _entries(path)), default=0))
    width = max(1.0, (log.last_step + 1) / COLUMNS)
    charts = {chart.key for chart in CHARTS}
    for entry in _entries(path):
        step, phase = entry.pop("step"), str(entry.pop("phase", ""))
        if phase and (not log.phases or log.phases[-1][1] != phase):
            log.phases.append((step, phase))
        validates = any(key.startswith(f"{SCORES.key}/") for key in entry)
        column = (log.validation if validates else log.training)[int(step / width)]
        column.add("step", step)
        for key, value in entry.items():
            if key.partition("/")[0] in charts and isinstance(value, (int, float)) and math.isfinite(value):
                column.add(key, value)
                log.latest[key] = value
                log.best[key] = max((value, step), log.best.get(key, (value, step)))
    return log


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                yield entry


def _page(title: str, log: Log, photos: Sequence[ReportPhoto]) -> str:
    phase = f" · phase {escape(log.phases[-1][1])}" if log.phases else ""
    keys = {chart: sorted(key for key in log.latest if key.partition("/")[0] == chart.key) for chart in CHARTS}
    charts = [_chart(chart, lines, log) for chart, lines in keys.items() if lines]
    tiles = [_tile(key, log) for key in keys[SCORES]]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>step {log.last_step:,}{phase}</p></header>
<section class="tiles">{"".join(tiles)}</section>
<section class="photos">{"".join(map(_card, photos))}</section>
<section class="charts">{"".join(charts)}</section>
</body>
</html>
"""


def _tile(key: str, log: Log) -> str:
    now, (best, step) = log.latest[key], log.best[key]
    note = "best so far" if now == best else f"best {best:.3f} at step {step:,}"
    return f"<div><h3>{escape(key.partition('/')[2])}</h3><b>{now:.3f}</b><small>{note}</small></div>\n"


def _card(photo: ReportPhoto) -> str:
    rows = [("reference", escape(photo.reference))]
    if photo.before is not None:
        rows.append(("before", _marked(photo.before, photo.now, "del")))
    rows.append(("now", _marked(photo.now, photo.now if photo.before is None else photo.before, "ins")))
    texts = "".join(f'<dt>{label}</dt><dd dir="auto" class="{label}">{text}</dd>' for label, text in rows)
    image = f'<img src="{_data_uri(photo.image)}" alt="{escape(photo.name)}">'
    return f"<figure>{image}<figcaption><small>{escape(photo.name)}</small><dl>{texts}</dl></figcaption></figure>\n"


def _marked(text: str, other: str, tag: str) -> str:
    """Return `text` as HTML, with the words that `other` lacks at their place inside `tag`."""
    words = text.split()
    blocks = SequenceMatcher(None, words, other.split(), autojunk=False).get_matching_blocks()
    kept = {index for block in blocks for index in range(block.a, block.a + block.size)}
    runs = groupby(range(len(words)), kept.__contains__)
    pieces = [(same, escape(" ".join(words[index] for index in run))) for same, run in runs]
    return " ".join(piece if same else f"<{tag}>{piece}</{tag}>" for same, piece in pieces)


def _data_uri(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def _chart(chart: Chart, keys: list[str], log: Log) -> str:
    """`keys` are the chart's lines, sorted, so that the line for `chart.key` itself comes first."""
    columns = [column for _, column in sorted((log.validation if chart.validation else log.training).items())]
    names = {key: key.partition("/")[2] or chart.whole for key in keys}
    parts = [key for key in keys if key != chart.key]
    colors = {chart.key: "whole"} | {key: f"c{number % COLORS}" for number, key in enumerate(parts)}
    x = Scale(0, max(log.last_step, 5), LEFT, RIGHT)
    y = _fitting([column.mean(key) for column in columns for key in keys if key in column.sums], chart.logarithmic)
    drawing = [_axes(chart, x, y), _phase_marks([(x(step), name) for step, name in log.phases])]
    for key in keys:
        points = [(x(c.mean("step")), y(c.mean(key))) if key in c.sums else None for c in columns]
        drawing.append(f'<path class="line {colors[key]}" d="{_path(points)}"/>')
        if len(columns) <= MARKED:
            drawing.append(f'<path class="dots {colors[key]}" d="{_dots(points)}"/>')
    drawing.append(_readings(columns, names, x))
    legend = "".join(
        f'<li><i class="{colors[key]}"></i>{escape(name)} <b>{log.latest[key]:.4g}</b></li>'
        for key, name in names.items()
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{chart.title}">{"".join(drawing)}</svg>'
    return f"<article><h2>{chart.title}</h2>{svg}<ul>{legend}</ul></article>\n"


def _fitting(values: list[float], logarithmic: bool) -> Scale:
    if logarithmic:  # at most three decades: a rate that falls to 0 would flatten the others
        high = max(values) if max(values) > 0 else 1.0
        low = max(min(values), high * 1e-3)
        return Scale(low / 1.2, high * 1.2, BOTTOM, TOP, True)
    margin = 0.05 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0
    return Scale(min(values) - margin, max(values) + margin, BOTTOM, TOP)


def _axes(chart: Chart, x: Scale, y: Scale) -> str:
    rows = "".join(
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{RIGHT}"/>'
        f'<text class="y" x="{LEFT - 8}" y="{y(tick) + 4:.1f}">{tick:.6g}</text>'
        for tick in y.ticks()
    )
    columns = "".join(f'<text class="x" x="{x(tick):.1f}" y="{BOTTOM + 19}">{tick:,.0f}</text>' for tick in x.ticks())
    middle = (TOP + BOTTOM) / 2
    unit = chart.unit + (", logarithmic" if chart.logarithmic else "")
    titles = (
        f'<text class="x" x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 6}">step</text>'
        f'<text class="x" transform="rotate(-90 14 {middle})" x="14" y="{middle}">{unit}</text>'
    )
    return f'{rows}<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>{columns}{titles}'


def _phase_marks(phases: list[tuple[float, str]]) -> str:
    """Draw a line and a name where each phase begins, as far as there is space for them."""
    marks, line_end, name_end = [], -math.inf, -math.inf
    for x, name in phases:
        if x >= line_end:
            marks.append(f'<path class="phase" d="M{x:.1f} {TOP}V{BOTTOM}"/>')
            line_end = x + 6
        width = 7 * len(name) + 8  # of letters at the stylesheet's size
        at = min(x, RIGHT - width)
        if at >= name_end:
            marks.append(f'<text class="phase" x="{at:.1f}" y="{TOP - 8}">{escape(name)}</text>')
            name_end = at + width
    return "".join(marks)


def _path(points: list[tuple[float, float] | None]) -> str:
    """Draw lines through adjacent points, interrupted by None; a single point becomes a line of length 0."""
    runs = [[point for point in run if point] for there, run in groupby(points, bool) if there]
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in [run[0], *run]) for run in runs)


def _dots(points: list[tuple[float, float] | None]) -> str:
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in filter(None, points))


def _readings(columns: list[Column], names: dict[str, str], x: Scale) -> str:
    """Draw an invisible bar over each column, with its values as a tooltip."""
    steps = [column.mean("step") for column in columns]
    edges = [LEFT, *(x((before + after) / 2) for before, after in pairwise(steps)), RIGHT]
    bars = []
    for column, step, (left, right) in zip(columns, steps, pairwise(edges), strict=True):
        values = "\n".join(f"{name} {column.mean(key):.4g}" for key, name in names.items() if key in column.sums)
        bar = f'<rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{BOTTOM - TOP}">'
        bars.append(f"{bar}<title>step {step:,.0f}\n{escape(values)}</title></rect>")
    return "".join(bars)


STYLE = """
:root { --page: #f6f6f4; --card: #fff; --ink: #1c1c1a; --soft: #6b6b66; --rule: #e4e3df; --ins: #d3f0df; --del: #fbdcd9;
  --c0: #2a78d6; --c1: #eb6834; --c2: #1a9e6f; --c3: #4a3aa7;
  --c4: #d99100; --c5: #d5659b; --c6: #0b7a75; --c7: #e34948 }
@media (prefers-color-scheme: dark) { :root {
  --page: #161615; --card: #20201e; --ink: #f0efec; --soft: #a3a29c; --rule: #383835; --ins: #1d4a34; --del: #5a2926;
  --c0: #4a94ec; --c1: #ee7d4f; --c2: #2fb583; --c3: #9b90ee;
  --c4: #d99a1c; --c5: #e07fae; --c6: #36aaa4; --c7: #ea6b6b } }
* { box-sizing: border-box; margin: 0 }
body { max-width: 1360px; margin: auto; padding: 28px 20px 48px; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums }
h1 { font-size: 26px; font-weight: 650; overflow-wrap: anywhere } h2 { font-size: 15px; font-weight: 600 }
h3 { font-size: 13px; font-weight: 500; color: var(--soft) }
header p, small { color: var(--soft); font-size: 13px; overflow-wrap: anywhere }
section { display: grid; gap: 14px; margin-top: 22px }
.tiles { grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)) }
.photos { grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)) }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 540px), 1fr)) }
.tiles div, figure, article { background: var(--card); border: 1px solid var(--rule); border-radius: 10px }
.tiles div { padding: 10px 14px } .tiles b { display: block; font-size: 24px; font-weight: 600; line-height: 1.25 }
figure { overflow: hidden } figcaption { padding: 8px 12px 12px }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--rule) }
dt { margin-top: 6px; color: var(--soft); font-size: 11px; letter-spacing: .04em; text-transform: uppercase }
dd { overflow-wrap: anywhere } dd.reference, dd.before { color: var(--soft) } dd.now { font-weight: 600 }
ins, del { padding: 0 2px; border-radius: 3px; color: inherit; text-decoration: none }
ins { background: var(--ins) } del { background: var(--del); text-decoration: line-through }
article { padding: 14px 16px 12px; overflow-x: auto }
svg { display: block; width: 100%; min-width: 480px; height: auto; margin: 4px 0 }
svg text { fill: var(--soft); font-size: 12.5px } text.x { text-anchor: middle } text.y { text-anchor: end }
path { fill: none } .grid { stroke: var(--rule) } .axis { stroke: var(--soft) }
path.phase { stroke: var(--soft); stroke-dasharray: 2 4; opacity: .5 }
.line { stroke-width: 1.8; stroke-linecap: round; stroke-linejoin: round }
.dots { stroke-width: 5.5; stroke-linecap: round }
rect { fill: transparent } rect:hover { fill: var(--soft); opacity: .18 }
ul { display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 0; list-style: none; font-size: 13px; color: var(--soft) }
li b { color: var(--ink); font-weight: 600 }
li i { display: inline-block; width: 14px; height: 3px; margin-right: 3px; border-radius: 2px; vertical-align: middle }
.whole { stroke: var(--ink); background: var(--ink) }
""" + "".join(f".c{n} {{ stroke: var(--c{n}); background: var(--c{n}) }}\n" for n in range(COLORS))
