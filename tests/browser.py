"""Debian's Chromium, driven by selenium, with a temporary profile."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en"),
    "--window-size=1400,1000",  # of the tabs that links open, too; in a narrow one MLflow folds descriptions
)
NOT_YET = (ElementClickInterceptedException, ElementNotInteractableException, StaleElementReferenceException)
PATIENCE_SECONDS = 90.0
COLOURS = 128


class Browser:
    """Open pages, look for elements, click, follow links. Each method waits for its element or text."""

    def __init__(self, chromium: str, chromedriver: str, profile: Path, pictures: str | None) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        self.driver = webdriver.Chrome(options=options, service=Service(chromedriver))
        self._left: list[str] = []
        self._pictures = pictures

    def open(self, url: str) -> None:
        """Open the page in the first tab and close all others: MLflow renders its tables completely only there."""
        while self._left:
            self.close_tab()
        self.driver.get(url)

    def look(self, xpath: str, seconds: float = PATIENCE_SECONDS) -> WebElement:
        """Wait for a visible element that matches, and return the first."""
        return self._wait(lambda: next(iter(self.shown(xpath)), None), xpath, seconds)

    def shown(self, xpath: str) -> list[WebElement]:
        return [each for each in self.driver.find_elements(By.XPATH, xpath) if each.is_displayed()]

    def read(self, text: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the page contains this text."""
        self._wait(lambda: text in self.text, f"the text {text!r}", seconds)

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def click(self, xpath: str) -> None:
        def clicked() -> bool:
            self.look(xpath).click()
            return True

        self._wait(clicked, f"a click at {xpath}")

    def write(self, xpath: str, text: str) -> None:
        self.look(xpath).send_keys(text)

    def follow(self, xpath: str) -> None:
        """Click a link and switch to the tab that it opens, if any."""
        before = set(self.driver.window_handles)
        self.click(xpath)
        time.sleep(1)
        for opened in set(self.driver.window_handles) - before:
            self._left.append(self.driver.current_window_handle)
            self._show_tab(opened)

    def close_tab(self) -> None:
        """Close the tab and return to the page whose link opened it."""
        self.driver.close()
        self._show_tab(self._left.pop())

    def _show_tab(self, handle: str) -> None:
        self.driver.switch_to.window(handle)
        self.driver.execute_cdp_cmd("Page.bringToFront", {})

    def arrives(self, part: str) -> None:
        """Wait until the address contains this part."""
        self._wait(lambda: part in unquote(self.driver.current_url), f"an address with {part}")

    def keep(self, name: str, width: int, height: int) -> None:
        """Save a picture of the page if a folder for pictures is set."""
        if self._pictures is None:
            return
        self.resize(width, height)
        time.sleep(3)  # charts are redrawn, animations end
        drawn = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        Path(self._pictures).mkdir(parents=True, exist_ok=True)
        path = Path(self._pictures, f"{name}.png")
        drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page, without the window frame."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def stop(self) -> None:
        self.driver.quit()

    def _wait(self, found: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS):
        deadline = time.monotonic() + seconds
        while True:
            try:
                if value := found():
                    return value
            except NOT_YET:
                pass
            if time.monotonic() > deadline:
                self._failed(what)
            time.sleep(0.2)

    def _failed(self, what: str) -> None:
        if folder := os.environ.get("BERT_PIPELINE_FAILED_PAGES"):
            self.driver.save_screenshot(str(Path(folder, "failed.png")))
        raise AssertionError(f"{what} did not appear at {self.driver.current_url}; the page says:\n{self.text[:3000]}")


def says(text: str, tag: str = "*") -> str:
    """Return the XPath of the innermost elements with this text."""
    return f"//{tag}[normalize-space(text())='{text}']"
