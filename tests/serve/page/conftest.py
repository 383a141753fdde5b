"""A browser that reaches nothing but this machine, and `hilora serve` over tiny things for it to show."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from playwright.sync_api import Browser, Error, Page, sync_playwright
from soaking.made import Server, bench, server

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # it shows no page but ours
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
CONTEXT = 8192
SIZES = {"wide": (1200, 900), "narrow": (400, 800)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium: HILORA_BROWSER, or the system's, or Playwright's own."""
    wanted = os.environ.get("HILORA_BROWSER")
    found = wanted or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            made = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        except Error:
            if wanted:
                raise
            pytest.skip("no Chromium: install it, or run `playwright install chromium`; see HILORA_BROWSER")
        yield made
        made.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: Any) -> Iterator[Server]:
    """A server for this machine alone, whose base model holds enough for an answer that nobody waits out."""
    with bench(tmp_path_factory.mktemp("shown")) as made:
        model = made.tiny.model("llama")
        model.config.max_position_embeddings = CONTEXT
        model.save_pretrained(made.home / "base")
        made.tiny.tokenizer().save_pretrained(made.home / "base")
        with server(made) as running:
            yield running


class Visitor:
    """Someone at a page, and all that the page asks for.

    Args:
        browser: of the visitor.
        url: of the server.
        theme: light or dark; `size`: one of `SIZES`.
    """

    def __init__(self, browser: Browser, url: str, theme: Any = "light", size: str = "wide") -> None:
        width, height = SIZES[size]
        self.url, self.asked, self.wrong = url, list[str](), list[str]()
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("console", lambda said: "Security Policy" in said.text and self.wrong.append(said.text))
        self.page.goto(f"{url}/ui")

    def ask(self, prompt: str, **fields: str) -> None:
        """Fill in the form, and send it."""
        self.page.get_by_label("Prompt").fill(prompt)
        for name, value in fields.items():
            place = self.page.locator(f"#{name}")
            place.select_option(value) if name in ("method", "other") else place.fill(value)
        self.page.get_by_role("button", name="Ask", exact=True).first.click()

    def leave(self) -> None:
        """The page has asked nobody but the server it came from, and nothing went wrong in it."""
        hosts = {urlsplit(url).netloc for url in self.asked if not url.startswith("data:")}
        self.context.close()
        assert hosts == {urlsplit(self.url).netloc}
        assert self.wrong == []


@pytest.fixture
def visit(browser: Browser, shown: Server) -> Iterator[Any]:
    """Makes visitors, whose pages are looked at when they leave."""
    came: list[Visitor] = []

    def make(url: str = "", **options: Any) -> Visitor:
        came.append(Visitor(browser, url or shown.url, **options))
        return came[-1]

    yield make
    for each in came:
        each.leave()
