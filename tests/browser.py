"""A real browser for tests of pages: Debian's Chromium by selenium, headless and offline."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A selenium driver with an empty profile; skips the test where Chromium, its driver or selenium is missing."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    missing = [name for name, found in (("chromium", chromium), ("chromium-driver", driver)) if not found]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        resize(started, width, height)
        yield started
    finally:
        started.quit()


def resize(driver: Any, width: int, height: int) -> None:
    """Make the page itself so large; a window cannot be as narrow as a phone's."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def serious_faults(driver: Any) -> list[str]:
    """What axe finds at least serious: the rule, and the elements."""
    axe = files(pytest.importorskip("axe_core_python", reason="needs axe-core-python: pip install -e '.[dev]'"))
    driver.execute_script((axe / "axe.min.js").read_text(encoding="utf-8"))
    run = "const done = arguments[0]; axe.run(document).then(found => done(found.violations))"
    faults: list[dict[str, Any]] = driver.execute_async_script(run)
    return [
        f"{fault['id']}: {[node['html'] for node in fault['nodes']]}"
        for fault in faults
        if fault["impact"] in ("serious", "critical")
    ]


def complaints(driver: Any) -> list[str]:
    """What the browser logged: errors of scripts, and what the security policy blocked; not what servers refused."""
    entries = [entry for entry in driver.get_log("browser") if entry["source"] not in ("network", "rendering")]
    return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]
