"""Draw docs/images/review-grid.jpg and review-single.jpg: the review page with the example photos, in Chromium.

    python examples/review_pictures.py

The captions, confidences and the heat map are those of the bundled model. Needs Chromium and its driver.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import browser  # noqa: E402

CAPTIONER = [sys.executable, "-m", "captioner"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
SIZE = (1280, 800)
QUALITY = 88


def wait(driver: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 120, 0.1).until(lambda _: driver.execute_script(f"return {script}"))


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def save(driver: Any, name: str) -> None:
    shot = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    shot.save(ROOT / "docs" / "images" / name, quality=QUALITY)


def draw(driver: Any, url: str) -> None:
    driver.get(f"{url}#state=all&sort=confidence")
    images = "[...document.querySelectorAll('.cell img')]"
    wait(driver, f"{images}.length > 3 && {images}.every((image) => image.complete && image.naturalWidth)")
    press(driver, "a")
    wait(driver, "document.querySelector('.badge.accepted') && document.getElementById('saving').hidden")
    save(driver, "review-grid.jpg")
    press(driver, "\ue007")  # Enter
    wait(driver, "document.querySelectorAll('#single .word').length > 1")
    words: list[str] = driver.execute_script(
        "return [...document.querySelectorAll('#single .word')].map((w) => w.textContent)"
    )
    noun = next(place for place, word in enumerate(words) if word.lower() not in {"a", "an", "the", "two"})
    press(driver, *"w" * (noun + 1))
    wait(driver, "!document.querySelector('#single canvas').hidden")
    save(driver, "review-single.jpg")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(ROOT / "examples" / "photos", Path(scratch, "photos"), ignore=shutil.ignore_patterns("*.md"))
        album = [*CAPTIONER, "annotate", "photos", "-o", "album.captions", "--num-return-sequences", "3"]
        subprocess.run(album, cwd=scratch, env=ENVIRONMENT, check=True)
        command = [*CAPTIONER, "review", "album.captions", "--reviewer", "ann", "--no-browser", "--port", "0"]
        server = subprocess.Popen(command, cwd=scratch, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        try:
            url = server.stderr.readline().split()[-1]
            with browser(Path(scratch, "profile"), *SIZE) as driver:
                draw(driver, url)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
