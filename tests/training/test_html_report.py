import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from captioner.errors import CaptionerError
from captioner.training.html_report import ReportPhoto, write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """The page as a reader meets it; fails where an element is closed that is not open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}  # by tag, what its elements hold in all
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data

    def lines(self) -> list[str]:
        return [
            attributes["d"] or "" for tag, attributes in self.tags if "line" in (attributes.get("class") or "").split()
        ]


def photo(reference: str = "a dog", before: str | None = None, now: str = "a dog", name: str = "1.jpg") -> ReportPhoto:
    return ReportPhoto(Image.new("RGBA", (600, 300), "red"), name, reference, before, now)


def write_log(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", line)]


def test_text_from_outside_is_shown_as_it_is_and_changed_words_are_marked(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", {"step": 1, "phase": "<i>&", "loss": 2.0, "loss/<b>": 2.0})
    captions = photo("<script>x</script> & a dog", "a <b> cat runs", "a <i> dog runs", 'n"<u>\udcff.jpg')
    write_report(tmp_path / "report.html", "run <1>", log, [captions])
    page = Page(tmp_path / "report.html")
    assert page.texts["dd"] == ["<script>x</script> & a dog", "a <b> cat runs", "a <i> dog runs"]
    assert (page.texts["del"], page.texts["ins"]) == (["<b> cat"], ["<i> dog"])
    assert page.texts["h1"] == ["run <1>"]
    assert page.texts["figcaption"][0].startswith('n"<u>?.jpg')
    assert not {"script", "u", "link"} & {tag for tag, _ in page.tags}


def test_a_page_asks_for_no_other_file_and_holds_small_photos(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "run", write_log(tmp_path / "log.jsonl"), [photo()])
    assert "http" not in (tmp_path / "report.html").read_text(encoding="utf-8").replace("http-equiv", "")
    (source,) = [attributes["src"] or "" for tag, attributes in Page(tmp_path / "report.html").tags if tag == "img"]
    prefix, data = source.split(",")
    assert prefix == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (224, 112)


def test_broken_lines_and_values_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    good = [json.dumps({"step": step, "phase": "joint", "loss": loss}) for step, loss in ((1, 4.0), (2, 3.0), (4, 2.0))]
    bad = ['{"step": 3, "loss": NaN, "grad_norm": Infinity}', '{"loss": 1}', "[1]", '{"step": "x", "loss": 9}', '{"st']
    log.write_text("\n".join(good + bad))
    write_report(tmp_path / "report.html", "run", log, [])
    page = Page(tmp_path / "report.html")
    assert page.texts["h2"] == ["Training loss"]
    (line,) = page.lines()
    (x0, y0), *_, (x1, y1) = points(line)
    assert x0 < x1 and y0 < y1  # of an SVG, whose y grows downwards: the loss falls


def test_a_line_breaks_where_its_part_rests(tmp_path: Path) -> None:
    def rate(step: int) -> dict[str, object]:
        part = "trunk" if step % 10 < 5 else "decoder"
        return {"step": step, "phase": part, f"rate/{part}": 0.1 / (step + 1)}

    write_report(tmp_path / "report.html", "run", write_log(tmp_path / "log.jsonl", *map(rate, range(20))), [])
    assert [line.count("M") for line in Page(tmp_path / "report.html").lines()] == [2, 2]


def test_a_long_training_makes_a_small_page_that_stays_within_its_axes(tmp_path: Path) -> None:
    losses = ({"step": n, "phase": "ab"[n // 100 % 2], "loss": 9 / n, "rate/decoder": 1 / n} for n in range(1, 100_001))
    scores = ({"step": n, "validation/CIDEr": n / 1e5 if n < 90_000 else 0.5} for n in range(1000, 100_001, 1000))
    log = write_log(tmp_path / "log.jsonl", *sorted([*losses, *scores], key=lambda entry: entry["step"]))
    write_report(tmp_path / "report.html", "run", log, [])
    assert (tmp_path / "report.html").stat().st_size < 200_000
    page = Page(tmp_path / "report.html")
    assert page.texts["small"] == ["best 0.890 at step 89,000"]
    lines = [points(line) for line in page.lines()]
    assert len(lines) == 3 and all(100 <= len(line) <= 301 for line in lines)
    assert all(74 <= x <= 610 and 26 <= y <= 242 for line in lines for x, y in line)


def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()  # in the way of the renaming
    log = write_log(tmp_path / "log.jsonl")
    with pytest.raises(CaptionerError):
        write_report(tmp_path / "report.html", "run", log, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "report.html"]
