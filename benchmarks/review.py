"""How quick the review page is with many photos: `python benchmarks/review.py`.

Makes a project of 50,000 generated photos (500 pictures of 640 x 480 under many names), serves it, and measures in
Chromium: from the start of the navigation until all thumbnails on screen are painted, with none made before; from a
key press until the next photo is on screen, over 200 presses; and the server's memory. Prints one JSON line.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
from PIL import Image, ImageDraw

from captioner.annotate.project import Project
from captioner.annotate.project_records import NewCaption, Writer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import browser  # noqa: E402

PICTURES, SIZE = 500, (640, 480)
WORDS = "a dog runs over green grass near two people in red jackets on a sunny day by the sea".split()

FIRST_GRID = """
const look = () => {
  const images = [...document.querySelectorAll(".cell img")];
  const shown = images.filter((image) => image.getBoundingClientRect().top < innerHeight);
  const isThere = shown.length >= 8 && shown.every((image) => image.complete && image.naturalWidth);
  if (isThere) requestAnimationFrame(() => (window.firstGrid = performance.now()));
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
NEXT_PHOTO = """
window.waits = [];
addEventListener("keydown", (event) => {
  const begun = event.timeStamp;
  const before = location.hash;
  const look = () => {
    const id = new URLSearchParams(location.hash.slice(1)).get("photo");
    const image = document.querySelector("#single .stage img");
    const isNext = location.hash !== before && image && RegExp(`/(photos|thumbnails)/${id}[?]`).test(image.src);
    if (isNext && image.complete && image.naturalWidth) window.waits.push(performance.now() - begun);
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}, true);
"""


def make_project(folder: Path, count: int) -> Path:
    """Photos are hard links to a few pictures: names, rows and requests are as many as of real ones."""
    draw = random.Random(0)
    pictures = []
    for number in range(min(PICTURES, count)):
        picture = Image.effect_noise(SIZE, 40).convert("RGB")
        pen = ImageDraw.Draw(picture)
        for _ in range(6):
            corner = (draw.randrange(SIZE[0]), draw.randrange(SIZE[1]))
            pen.ellipse((*corner, corner[0] + 200, corner[1] + 150), fill=tuple(draw.choices(range(256), k=3)))
        pictures.append(folder / f"picture{number}.jpg")
        picture.save(pictures[-1], quality=85)
    with Project(folder / "album.captions", create=True, durable=False) as project:
        writer = project.writer_id(Writer("model", "generated", "0"))
        with project.transaction() as connection:
            for number in range(count):
                name = f"photos/{number // 1000:02}/{number:05}.jpg"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(pictures[number % len(pictures)], folder / name)
                connection.execute(
                    "INSERT INTO images (path, member, size, mtime, width, height) VALUES (?, '', 1, ?, ?, ?)",
                    (name, number, *SIZE),
                )
                words = draw.choices(WORDS, k=10)
                caption = NewCaption(
                    " ".join(words), confidence=draw.random(), words=[(word, draw.random()) for word in words]
                )
                project.add_suggestion(number + 1, caption, writer)
    return folder / "album.captions"


@contextmanager
def serving(project: Path) -> Iterator[tuple[psutil.Process, str]]:
    command = [sys.executable, "-m", "captioner", "review", str(project), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stderr is not None
    try:
        yield psutil.Process(process.pid), process.stderr.readline().split()[-1]
    finally:
        process.kill()
        process.wait()


def key_presses(driver: Any, count: int) -> list[float]:
    """Milliseconds from each press of "a" (accept) until the next photo is painted."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    ActionChains(driver).send_keys(Keys.ENTER).perform()
    WebDriverWait(driver, 20).until(lambda _: driver.execute_script("return !!document.querySelector('.stage img')"))
    driver.execute_script(NEXT_PHOTO)
    for number in range(count):
        ActionChains(driver).send_keys("a").perform()
        WebDriverWait(driver, 20, 0.05).until(
            lambda _, number=number: driver.execute_script("return waits.length") > number
        )
    waits: list[float] = driver.execute_script("return waits")
    return waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=50_000)
    parser.add_argument("--presses", type=int, default=200)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="review-benchmark-") as scratch:
        project = make_project(Path(scratch), asked.photos)
        with serving(project) as (server, url), browser(Path(scratch, "profile"), 1280, 900) as driver:
            driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": FIRST_GRID})
            driver.get(url)
            from selenium.webdriver.support.ui import WebDriverWait

            WebDriverWait(driver, 60, 0.05).until(lambda _: driver.execute_script("return window.firstGrid"))
            first_grid = driver.execute_script("return window.firstGrid")
            WebDriverWait(driver, 60).until(lambda _: driver.execute_script("return document.body.dataset.ready"))
            waits = key_presses(driver, asked.presses)
            peak = server.memory_info()
            result = {
                "photos": asked.photos,
                "first_grid_s": round(first_grid / 1000, 2),
                "next_photo_ms": {"median": round(quantiles(waits, n=2)[0]), "p95": round(quantiles(waits, n=20)[-1])},
                "server_mb": round(peak.rss / 1e6),
                "load": os.getloadavg()[0],
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
