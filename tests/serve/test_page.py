"""The page at /, in a real browser."""

import base64
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, complaints, resize, serious_faults

from captioner import Captioner
from captioner.infer.words import Word

HOSTILE = "<img src=x onerror=document.title='stolen'> & \"quoted\""

DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "<b>photo</b>.png", { type: "image/png" }));
for (const name of ["dragover", "drop"]) {
  document.body.dispatchEvent(new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""


DARKEST = """
const canvas = document.getElementById("heat");
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
return data.reduce((most, value, place) => (place % 4 === 3 ? Math.max(most, value) : most), 0);
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def texts(driver: Any, selector: str) -> list[str]:
    return [found.text for found in driver.find_elements("css selector", selector)]


def wait(driver: Any, condition: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 20, 0.05).until(lambda _: condition())


def choose(driver: Any, photo: Path) -> None:
    find(driver, "#file").send_keys(str(photo))


def caption_on(driver: Any) -> str:
    return " ".join(texts(driver, ".word span"))


def test_a_chosen_photo_is_shown_with_its_caption_and_the_confidence_of_each_word(driver, running, cap, photos):
    driver.get(running.url)
    choose(driver, photos[0])
    expected = cap(photos[0])
    wait(driver, lambda: caption_on(driver) == expected.text)
    result = running.post(photos[0]).json()["results"][0]
    assert texts(driver, ".word small") == [f"{round(100 * word['confidence'])} %" for word in result["words"]]
    assert find(driver, "#photo").get_attribute("alt") == expected.text
    assert driver.execute_script("return document.getElementById('photo').naturalWidth") == 60
    assert f"{round(100 * expected.confidence)} %" in find(driver, "#confidence").text
    assert all(tag.text in find(driver, "#more").text for tag in expected.tags)
    assert complaints(driver) == []


def test_pointing_at_a_word_shows_where_it_comes_from(driver, running, cap, photos):
    driver.get(running.url)
    choose(driver, photos[0])
    wait(driver, lambda: "Point at a word" in find(driver, "#hint").text)
    assert driver.execute_script(DARKEST) == 0
    word = find(driver, ".word")
    word.click()
    assert driver.execute_script(DARKEST) > 50 and word.get_attribute("aria-pressed") == "true"
    assert complaints(driver) == []


def test_a_dropped_photo_replaces_the_one_before(driver, running, cap, photos):
    driver.get(running.url)
    choose(driver, photos[0])
    wait(driver, lambda: caption_on(driver) == cap(photos[0]).text)
    driver.execute_script(DROP, base64.b64encode(photos[1].read_bytes()).decode())
    wait(driver, lambda: caption_on(driver) == cap(photos[1]).text)
    assert complaints(driver) == []


def test_a_file_that_is_no_photo_is_explained(driver, running, tmp_path):
    (tmp_path / "notes.png").write_text("not a photo")
    driver.get(running.url)
    choose(driver, tmp_path / "notes.png")
    wait(driver, lambda: "not an image" in find(driver, "#problem").text)
    assert not find(driver, "#result").is_displayed()


def test_a_hostile_caption_is_text(driver, serving, cap, photos):
    with serving(Saying(cap, HOSTILE)) as running:
        driver.get(running.url)
        choose(driver, photos[0])
        wait(driver, lambda: caption_on(driver) == HOSTILE)
        assert driver.title == "captioner" and not driver.find_elements("css selector", "#words img")
        assert find(driver, "#photo").get_attribute("alt") == HOSTILE
        assert complaints(driver) == []


class Saying:
    """A captioner that says one thing of every image."""

    def __init__(self, captioner: Captioner, text: str) -> None:
        self.captioner = captioner
        self.text = text

    def __getattr__(self, name: str) -> Any:
        return getattr(self.captioner, name)

    def stream(self, options: Any) -> Any:
        return Replaced(self.captioner.stream(options), self.text)


class Replaced:
    def __init__(self, stream: Any, text: str) -> None:
        self.stream = stream
        self.text = text

    def add(self, images: Any) -> list[Any]:
        return self.replaced(self.stream.add(images))

    def finish(self) -> list[Any]:
        return self.replaced(self.stream.finish())

    def replaced(self, captions: list[Any]) -> list[Any]:
        words = tuple(Word(word, 0.5) for word in self.text.split())
        return [dataclasses.replace(caption, text=self.text, words=words) for caption in captions]


def test_the_page_asks_for_the_token_and_goes_on_with_the_photo(driver, serving, cap, photos):
    with serving(cap, token="secret") as running:
        driver.get(running.url)
        choose(driver, photos[0])
        wait(driver, lambda: find(driver, "#token").is_displayed())
        find(driver, "#token").send_keys("wrong")
        find(driver, "#unlock button").click()
        wait(driver, lambda: "not the token" in find(driver, "#problem").text)
        find(driver, "#token").clear()
        find(driver, "#token").send_keys("secret")
        find(driver, "#unlock button").click()
        wait(driver, lambda: caption_on(driver) == cap(photos[0]).text)
        assert not find(driver, "#token").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_at_any_width(driver, running, cap, photos, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver.get(running.url)
    assert serious_faults(driver) == []
    choose(driver, photos[0])
    wait(driver, lambda: caption_on(driver) == cap(photos[0]).text)
    for width in (1280, 390):
        resize(driver, width, 900)
        assert serious_faults(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    driver.get(f"{running.url}/docs")
    wait(driver, lambda: "POST /v1/captions" in texts(driver, ".operation h2"))
    assert serious_faults(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    assert complaints(driver) == []
    resize(driver, 1280, 900)


def test_the_documentation_lists_every_option(driver, running):
    driver.get(f"{running.url}/docs")
    wait(driver, lambda: "POST /v1/captions" in texts(driver, ".operation h2"))
    page = find(driver, "#operations").text
    assert "banned_words list of string Words or phrases" in page.replace("\n", " ")
    assert "num_beams integer at least 1, at most 16" in page
