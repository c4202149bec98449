"""The page in a real browser: by keyboard, over reloads, with two people, with hostile words, narrow and dark."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from albums import Running, add_photo
from browser import browser, complaints, resize, serious_faults
from PIL import Image

HOSTILE = "<img src=x onerror=document.title='stolen'> & \"quoted\" 🐕"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(driver: Any, running: Running) -> Iterator["Page"]:
    resize(driver, 1280, 900)
    driver.get("about:blank")
    yield Page(driver, running).open()
    assert complaints(driver) == []


class Page:
    """The page of a server in a browser, and what a person does there."""

    def __init__(self, driver: Any, running: Running) -> None:
        self.driver, self.running = driver, running

    def open(self, hash: str = "") -> "Page":
        self.driver.get(f"{self.running.key}#{hash}")
        return self.ready()

    def ready(self) -> "Page":
        self.wait(lambda: self.run("return document.body.dataset.ready") == "true")
        return self

    def reload(self) -> None:
        self.driver.refresh()
        self.ready()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def select_all(self) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).key_down(keys().CONTROL).send_keys("a").key_up(keys().CONTROL).perform()

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        found = "[...document.querySelectorAll(arguments[0])].map((element) => element.innerText.trim())"
        return self.run(f"return {found}", selector)

    def wait(self, condition: Any) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 20, 0.05, [StaleElementReferenceException]).until(lambda _: condition())

    def shows(self, text: str) -> None:
        self.wait(lambda: self.texts("#single .text") == [text])

    def saved(self) -> None:
        self.wait(lambda: not self.find("#saving").is_displayed())


def keys() -> Any:
    from selenium.webdriver.common.keys import Keys

    return Keys


def test_a_review_by_keyboard_alone(page, running):
    assert page.run("return location.search") == "", "the token is out of the address"
    page.wait(lambda: len(page.texts(".cell .caption")) == 6)
    page.press("a")  # accepts the least confident, in the grid
    page.press(keys().ENTER)
    page.shows("a red bicycle")
    page.press("e")
    page.select_all()
    page.press("a blue bicycle", keys().ENTER)
    page.shows("two dogs play")
    page.press("r")
    page.shows("a child on a swing")
    page.press("1")
    page.shows("a boat at sea")
    page.saved()
    verdicts = {image: (running.card(image)["verdict"], running.card(image)["text"]) for image in (1, 2, 3, 4)}
    assert verdicts == {
        1: ("accepted", "a dog runs"),
        2: ("edited", "a blue bicycle"),
        3: ("rejected", "two dogs play"),
        4: ("edited", "a child on a swing again"),
    }
    page.wait(lambda: page.find("#left").text.startswith("2 left of 6"))


def test_undo_goes_back_to_the_photo_and_a_reload_keeps_everything(page, running):
    page.press(keys().ENTER, "a")
    page.shows("a red bicycle")
    page.press("r")
    page.shows("two dogs play")
    page.press("u")
    page.shows("a red bicycle")
    page.press("u")
    page.shows("a dog runs")
    page.press("U")
    page.wait(lambda: "✓ accepted" in page.texts("#single .badge.accepted"))
    page.reload()
    page.shows("a dog runs")
    assert "✓ accepted" in page.texts("#single .badge.accepted")
    assert running.card(1)["verdict"] == "accepted" and running.card(2)["verdict"] is None
    page.press(keys().ESCAPE)
    page.wait(lambda: page.texts(".cell .caption") and "a dog runs" not in page.texts(".cell .caption"))


def test_filters_and_search(page):
    page.press("/", "dog", keys().ENTER)
    page.wait(lambda: page.texts(".cell .caption") == ["a dog runs", "two dogs play", "a dog sleeps"])
    page.find('#flag option[value="low_confidence"]').click()
    page.wait(lambda: page.texts(".cell .caption") == ["a dog runs"])
    page.reload()
    assert page.texts(".cell .caption") == ["a dog runs"] and page.find("#text").get_attribute("value") == "dog"
    page.find('#states [data-state="accepted"]').click()
    page.wait(lambda: page.texts("#grid-empty") != [])


def test_words_that_the_model_doubts_are_marked(page):
    page.press(keys().ENTER)
    page.shows("a dog runs")
    assert page.texts("#single .word.low") == ["dog"] and page.texts("#single .word.mid") == ["runs"]
    assert page.texts("#single .flags .badge") == ["⚑ low confidence"] and page.texts("#single .tags li") == [
        "outdoors90 %"
    ]


def explained(source: Any, caption: Any) -> SimpleNamespace:
    """What a model would say of a photo: its second word looks at the lower right."""
    maps = np.zeros((3, 4, 4))
    maps[:, 0, 0] = 1
    maps[1, :, :] = 0
    maps[1, 3, 3] = 1
    words = [SimpleNamespace(text=word, confidence=0.5) for word in ("a", "dog", "runs")]
    caption = SimpleNamespace(text="a dog runs")
    return SimpleNamespace(
        photo=Image.new("RGB", (60, 40)), caption=caption, words=words, maps=maps, window=(10.0, 0.0, 50.0, 40.0)
    )


HOTTEST = """
const canvas = document.querySelector("#single canvas");
if (canvas.hidden) return null;
const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
copy.drawImage(canvas, 0, 0);
const { data, width } = copy.getImageData(0, 0, canvas.width, canvas.height);
let best = 0;
for (let place = 0; place < data.length; place += 4) if (data[place] > data[best]) best = place;
return [((best / 4) % width) / canvas.width, Math.floor(best / 4 / width) / canvas.height];
"""


def test_a_heat_map_shows_where_a_word_comes_from(page, running):
    running.app.state.review.heat_maps._captioner = SimpleNamespace(name="tiny", explain=explained)
    page.press(keys().ENTER)
    page.shows("a dog runs")
    assert page.run(HOTTEST) is None
    page.press("w", "w")
    page.wait(lambda: page.texts(".heat-note") == ["dog · 10 %"])
    x, y = page.run(HOTTEST)
    assert 0.6 < x < 0.84 and y > 0.74, "in the lower right of the part that the model sees"
    page.run("document.querySelector('#single .word').dispatchEvent(new MouseEvent('mouseenter'))")
    page.wait(lambda: page.texts(".heat-note") == ["a · 90 %"])
    x, y = page.run(HOTTEST)
    assert 0.15 < x < 0.35 and y < 0.25
    page.run("document.querySelector('#single .word').dispatchEvent(new MouseEvent('mouseleave'))")
    page.wait(lambda: page.run(HOTTEST) is None)


def test_a_second_browser_sees_decisions_and_conflicts_are_shown(page, running, tmp_path):
    with browser(tmp_path / "other") as driver:
        other = Page(driver, running).open()
        page.press(keys().ENTER)
        other.press(keys().ENTER)
        other.shows("a dog runs")
        other.press("e", "!")  # is typing while the first one saves
        page.press("e", " fast", keys().ENTER)
        page.shows("a red bicycle")
        page.saved()
        other.press(keys().ENTER)
        other.wait(lambda: len(other.texts("#dialog blockquote")) == 2)
        assert other.texts("#dialog blockquote") == ["a dog runs fast", "a dog runs!"]
        other.find("#dialog .primary").click()
        other.saved()
        assert running.card(1)["text"] == "a dog runs!"
        page.press(keys().ESCAPE)
        page.wait(lambda: page.texts(".cell .caption")[:1] == ["a dog runs!"])
    assert [caption.text for caption in running.project.captions(1)][-3:] == [
        "a dog runs fast",
        "a dog runs!",
        "a dog runs!",
    ]


def test_what_is_typed_and_decided_outlives_a_reload_and_a_server_that_is_down(page, running):
    page.press(keys().ENTER)
    page.shows("a dog runs")
    page.press("e", " slowly")
    page.reload()
    page.wait(lambda: page.find("#single textarea").get_attribute("value") == "a dog runs slowly")
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.press(keys().ENTER)
    page.wait(lambda: page.find("#notice").is_displayed() and page.find("#saving").is_displayed())
    assert running.card(1)["verdict"] is None
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": False})
    page.saved()
    assert running.card(1)["text"] == "a dog runs slowly"
    page.wait(lambda: not page.find("#notice").is_displayed())


def test_hostile_words_and_names_are_shown_as_text(page, running):
    name = HOSTILE.replace("/", "_")
    flags = {HOSTILE: HOSTILE}
    alternatives = [{"caption": HOSTILE, "confidence": 0.1}]
    tags = [{"tag": HOSTILE, "score": 0.5}]
    words = [(word, 0.1) for word in HOSTILE.split()]
    image = add_photo(
        running.project, f"{name}/{name}.png", HOSTILE + " ", confidence=0.01, words=words, alternatives=alternatives,
        tags=tags, flags=flags,
    )  # fmt: skip
    running.project.decide(image, 1, "edited", HOSTILE, HOSTILE + " 2")
    page.open("state=all&sort=newest")
    page.wait(lambda: page.texts(".cell .caption")[:1] == [HOSTILE + " 2"])
    page.press(keys().ENTER)
    page.shows(HOSTILE + " 2")
    assert page.texts("#single h2") == [f"{name}/{name}.png"] and page.texts("#single .tags li") == [f"{HOSTILE}50 %"]
    page.wait(lambda: HOSTILE in "".join(page.texts(".history li")))
    page.press("i")
    page.wait(lambda: HOSTILE in page.texts("#dialog td"))
    page.press(keys().ESCAPE)
    assert page.run("return document.title") == "album.captions · Review"
    assert page.run("return document.querySelectorAll('img[src=x], script:not([src])').length") == 0


def test_the_longest_caption_stays_in_its_place(page, running):
    running.decide(1, "edited", text="pneumono" * 1250)
    page.open("state=edited")
    page.wait(lambda: len(page.texts(".cell .caption")) == 1)
    assert page.find(".cell").size["height"] < 400
    page.press(keys().ENTER)
    page.wait(lambda: page.texts("#single .text") != [])
    assert page.run("return document.documentElement.scrollWidth") <= 1280
    assert page.find(".actions .primary").rect["y"] < 900


def test_bulk_acceptance_find_and_replace_and_groups(page, running):
    page.press("b")
    page.wait(lambda: "0 photos" in page.find("#dialog").text)
    slider = "const slider = document.querySelector('#dialog input');"
    page.run(f"{slider} slider.value = 40; slider.dispatchEvent(new Event('input'))")
    page.wait(lambda: "3 photos" in page.find("#dialog").text and page.find("#dialog .primary").is_enabled())
    page.find("#dialog .primary").click()
    page.wait(lambda: running.get("/api/list", state="accepted") == [4, 5, 6])
    page.press("f", "dog", keys().TAB, "cat")
    page.wait(lambda: page.texts("#dialog ins") == ["a cat runs"])
    page.press(keys().ENTER)
    page.find("#dialog .primary").click()
    page.wait(lambda: running.card(1)["text"] == "a cat runs")
    page.open("photo=2")
    page.wait(lambda: len(page.texts(".group button")) == 2)
    page.find(".group-acts button:nth-child(2)").click()
    page.wait(lambda: running.card(3)["text"] == "a red bicycle")
    page.press("u")
    page.wait(lambda: running.card(3)["verdict"] is None and running.card(2)["verdict"] is None)


def test_a_phone_shows_all_of_it(page):
    resize(page.driver, 390, 800)
    page.open("sort=confidence")
    page.wait(lambda: len(page.texts(".cell .caption")) == 6)
    cells = page.driver.find_elements("css selector", ".cell")
    assert cells[0].rect["y"] == cells[1].rect["y"] and cells[1].rect["x"] + cells[1].rect["width"] <= 390
    cells[0].click()
    page.shows("a dog runs")
    assert page.run("return document.documentElement.scrollWidth") <= 390
    for button in page.driver.find_elements("css selector", ".actions button"):
        assert button.rect["x"] >= 0 and button.rect["x"] + button.rect["width"] <= 390
        assert button.rect["y"] + button.rect["height"] <= 800
    page.find(".actions .primary").click()
    page.shows("a red bicycle")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(page, scheme):
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    assert serious_faults(page.driver) == []
    page.press("x", "?")
    page.wait(lambda: page.texts("#dialog h2") == ["Keys"])
    assert serious_faults(page.driver) == []
    page.press(keys().ESCAPE)
    page.press(keys().ENTER, "e")
    page.wait(lambda: page.driver.find_elements("css selector", "#single textarea") != [])
    assert serious_faults(page.driver) == []


def test_scripts_are_valid_modules_without_html_of_their_own() -> None:
    from captioner.review.app import STATIC

    for script in STATIC.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert (
            "innerHTML" not in text
            and "insertAdjacentHTML" not in text
            and "http://" not in text
            and "https://" not in text
        )
