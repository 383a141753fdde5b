"""Screenshots of the page at /ui, and of a page of `hilora explain`, in headless Chromium: docs/images/*.png.

python reproduce/screens.py            a server over a copy of pools/flan-mini, on this machine alone

Needs Playwright (in the extra `dev`) and a Chromium: the system's, or HILORA_BROWSER, or Playwright's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

HERE = Path(__file__).parents[1]
OUT = HERE / "docs" / "images"
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
REVIEW = "Is the sentiment of this review positive or negative? The film was a joy from start to end."
SPACES = "Please add spaces between words: Thechildrenwalkedtoschoolintherain."
TRAFFIC = (REVIEW, SPACES, "What is 127 + 250?", "Translate to German: Good morning, my friend.", REVIEW)
WIDE, NARROW = {"width": 1100, "height": 900}, {"width": 400, "height": 900}


@contextlib.contextmanager
def served(pool: Path) -> Iterator[str]:
    """A server's URL."""
    command = [sys.executable, "-m", "hilora", "serve", "--pool", str(pool), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+:\d+", process.stdout.readline())
        if found is None:
            raise SystemExit("The server did not start; see what `hilora serve` says.")
        yield found[0]
    finally:
        process.terminate()
        process.wait(60)


def ask(page: Page, prompt: str, method: str, other: str = "") -> None:
    """Ask, and wait until all is there."""
    page.goto(page.url.partition("#")[0] + "#ask")
    page.get_by_label("Prompt").fill(prompt)
    page.locator("#method").select_option(method)
    page.locator("#other").select_option(other)
    page.get_by_label("Seed").fill("0")
    page.locator("#go").click()
    expect(page.locator(".answer[aria-busy=false] .map")).to_have_count(1 + bool(other), timeout=120_000)


def explained(pool: Path, folder: Path) -> Path:
    """A page of `hilora explain`."""
    path = folder / "explained.html"
    command = [
        sys.executable,
        "-m",
        "hilora",
        "explain",
        REVIEW,
        "--pool",
        str(pool),
        "--generate",
        "--out",
        str(path),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=HERE / "pools" / "flan-mini")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    browser_path = os.environ.get("HILORA_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        pool = shutil.copytree(args.pool, Path(home) / "pool")
        browser = playwright.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
        with served(pool) as url:
            page = browser.new_page(viewport=WIDE)
            page.goto(f"{url}/ui")
            for prompt in TRAFFIC:
                ask(page, prompt, "hilora-plus")
            ask(page, REVIEW, "hilora-plus", "hilora")
            page.screenshot(path=args.out / "page-ask.png", full_page=True)
            page.get_by_role("link", name="Pool").click()
            expect(page.locator("#adapters tbody tr")).not_to_have_count(0)
            page.screenshot(path=args.out / "page-pool.png")
            page = browser.new_page(viewport=NARROW, color_scheme="dark")
            page.goto(f"{url}/ui")
            ask(page, SPACES, "hilora-plus")
            page.screenshot(path=args.out / "page-narrow-dark.png", full_page=True)
        html = explained(pool, Path(home))
        for width in (1000, 400):
            page = browser.new_page(viewport={"width": width, "height": 1100})
            page.goto(html.as_uri())
            page.screenshot(path=args.out / f"explain-{width}.png")
        browser.close()


if __name__ == "__main__":
    main()
