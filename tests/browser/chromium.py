"""A page in headless Chromium, and what the browser says of it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_S = 60
WIDE, NARROW = (1400, 1000), (390, 844)


class Chromium:
    """A browser with a profile of its own.

    Args:
        browser: Chromium's program.
        driver: Its driver's.
        profile: An empty folder.
    """

    def __init__(self, browser: str, driver: str, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))

    def close(self) -> None:
        self.driver.quit()

    def open(self, address: str, *, size: tuple[int, int] = WIDE, scheme: str = "light") -> None:
        """Load a page afresh, and forget what was logged before."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == NARROW}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")
        self.console()
        self.requests()
        self.driver.get(address)
        self.wait(lambda: self.one("#viewer").is_displayed())

    def wait(self, found: Callable[[], Any]) -> Any:
        """Ask until the answer is true."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                if value := found():
                    return value
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"not within {PATIENCE_S} s; the page says: {self.text('#problem') or self.console()}")

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.one(selector).get_property("textContent"))

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def console(self) -> list[str]:
        """What was said on the console since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since it was last asked."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def unnamed_controls(self) -> list[str]:
        """Roles of controls that a screen reader has no name for."""
        self.driver.execute_cdp_cmd("Accessibility.enable", {})
        nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = {"button", "slider", "combobox", "searchbox", "textbox", "application", "link", "image"}
        shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
        assert len(shown) > 5
        return [node["role"]["value"] for node in shown if not node.get("name", {}).get("value")]
