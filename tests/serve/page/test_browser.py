"""The page in a real browser: what it shows is what the API says, for whoever sees and types how."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect
from soaking.made import Server, bench, server

from hilora.serve.state import State

PROMPT = "abab baab abba"
HOSTILE = "<img src=x onerror=alert(1)> ab & <b>bold</b>"
LEAST = 4.5
"""Contrast that texts have at least (WCAG 2.2, AA)."""
CONTRASTS = Path(__file__).with_name("contrasts.js").read_text()


def cells(rows: Locator) -> list[list[str]]:
    """Texts of a table's rows."""
    return [row.locator("th, td").all_inner_texts() for row in rows.all()]


def test_an_answer_is_shown_with_the_adapters_that_the_api_names(visit: Any, shown: Server) -> None:
    visitor = visit()
    visitor.ask(PROMPT, method="mixture", seed="3", most="9")
    page = visitor.page
    expect(page.locator(".map")).to_have_count(1)
    asked = {"messages": [{"role": "user", "content": PROMPT}], "seed": 3, "hilora": {"method": "mixture"}}
    why = shown.client.post("/v1/route", json=asked).json()["hilora"]
    told = cells(page.locator(".adapters tbody tr"))
    assert [row[0].split()[0] for row in told] == [part["name"] for part in why["adapters"]]
    assert [row[2] for row in told] == [f"{part['score']:.3f}" for part in why["adapters"]]
    assert [row[3] for row in told] == [f"{part['rocs']} of {part['rank']}" for part in why["adapters"]]
    answer = shown.client.post("/v1/chat/completions", json=asked | {"max_tokens": 9, "temperature": 0}).json()
    assert page.locator(".answer .text").inner_text() == answer["choices"][0]["message"]["content"]
    seen = shown.client.post(
        "/v1/activations", json=asked | {"answer": answer["choices"][0]["message"]["content"]}
    ).json()
    head = page.locator(".map thead th").all_inner_texts()[1:]
    assert len(head) == len(seen["tokens"])
    shares = page.locator(".map tbody td").evaluate_all("all => all.map(e => e.style.getPropertyValue('--share'))")
    rows = zip(*seen["share_added"], strict=True)
    assert [float(share[:-1]) for share in shares] == pytest.approx([100 * share for row in rows for share in row])
    page.get_by_label("share of its ROCs").check()
    again = page.locator(".map tbody td").evaluate_all("all => all.map(e => e.style.getPropertyValue('--share'))")
    assert again != shares


def test_two_methods_stand_side_by_side_under_one_seed(visit: Any) -> None:
    visitor = visit()
    visitor.ask(PROMPT, method="hilora", other="base", most="5")
    answers = visitor.page.locator(".answer")
    expect(answers).to_have_count(2)
    for place in range(2):
        expect(answers.nth(place).locator("[role=status]")).to_contain_text("seed")
    told = visitor.page.locator(".answer [role=status]").all_inner_texts()
    seeds = [re.findall(r"seed (\d+)", text) for text in told]
    assert len(seeds[0]) == 1
    assert seeds[0] == seeds[1]
    left, right = (answers.nth(place).bounding_box() for place in range(2))
    assert (left["y"], left["x"] < right["x"]) == (right["y"], True)
    expect(answers.nth(1).get_by_text("The base model answers alone.")).to_be_visible()
    expect(answers.nth(0).locator(".map")).to_have_count(1)


def test_an_answer_comes_piece_by_piece_and_can_be_stopped(visit: Any) -> None:
    visitor = visit()
    visitor.ask(PROMPT, method="selection", most="4000", temperature="0")  # greedy: these weights never end it
    expect(visitor.page.locator(".answer .text")).not_to_be_empty()
    visitor.page.get_by_role("button", name="Stop").click()
    expect(visitor.page.locator(".answer [role=status]")).to_have_text("stopped")
    expect(visitor.page.locator(".answer")).to_have_attribute("aria-busy", "false")


def test_what_is_refused_is_said_in_the_servers_words(visit: Any, shown: Server) -> None:
    visitor = visit()
    visitor.ask("ab " * 4000)
    given = {"messages": [{"role": "user", "content": "ab " * 4000}], "max_tokens": 64}
    words = shown.client.post("/v1/chat/completions", json=given).json()["error"]["message"]
    expect(visitor.page.locator(".answer [role=status]")).to_have_text(words)


def test_markup_in_texts_stays_text(visit: Any) -> None:
    visitor = visit()
    visitor.ask(HOSTILE, method="hilora", most="5")
    expect(visitor.page.locator(".map")).to_have_count(1)
    assert visitor.page.locator("main img, main b").count() == 0
    heads = "".join(visitor.page.locator(".map thead th").all_inner_texts())
    assert "<" in heads


def drop(visitor: Any, files: dict[str, bytes]) -> None:
    """Files are let go over the page."""
    given = [[name, list(content)] for name, content in files.items()]
    carried = visitor.page.evaluate_handle(
        """files => {
            const carried = new DataTransfer();
            for (const [name, bytes] of files) carried.items.add(new File([new Uint8Array(bytes)], name));
            return carried;
        }""",
        given,
    )
    visitor.page.dispatch_event("#drop", "dragover", {"dataTransfer": carried})
    visitor.page.dispatch_event("#drop", "drop", {"dataTransfer": carried})


def sent(shown: Server, seed: int, task: str = "delta") -> dict[str, bytes]:
    """Files of an adapter, by their names."""
    form = shown.bench.form(seed, task)
    return dict(form.values())


def test_an_adapter_is_dropped_becomes_live_answers_and_is_taken_out(visit: Any, shown: Server) -> None:
    visitor = visit()
    page = visitor.page
    page.get_by_role("link", name="Pool").click()
    expect(page.locator("#adapters tbody tr")).to_have_count(3)
    drop(visitor, sent(shown, 31) | {"README.md": b"x"})
    expect(page.locator("#chosen")).to_contain_text("not used: README.md")
    page.locator("#name").fill("dropped")
    page.get_by_role("button", name="Upload").click()
    state = page.locator("#uploads .state").first
    expect(state).to_have_text("live", timeout=60_000)
    row = page.locator("#adapters tbody tr", has_text="dropped")
    expect(row).to_have_count(1)
    assert shown.look("dropped")["state"] == "live"

    page.get_by_role("button", name="Ask dropped").click()
    visitor.ask(PROMPT, most="4")
    expect(page.locator(".answer h3")).to_have_text("dropped")
    expect(page.locator(".map")).to_have_count(1)
    page.get_by_role("link", name="Pool").click()
    expect(row.locator(".bar")).to_have_text("1")

    page.get_by_label("Search").fill("DROP")
    expect(page.locator("#adapters tbody tr")).to_have_count(1)
    page.get_by_role("button", name="Take out dropped").click()
    page.keyboard.press("Escape")
    assert shown.look("dropped")["state"] == "live"
    page.get_by_role("button", name="Take out dropped").click()
    page.get_by_role("button", name="Take it out").click()
    expect(row).to_have_count(0)
    assert shown.look("dropped")["error"]["code"] == "model_not_found"


def test_an_upload_that_is_refused_says_why(visit: Any, shown: Server) -> None:
    visitor = visit()
    page = visitor.page
    page.get_by_role("link", name="Pool").click()
    files = sent(shown, 32)
    config = json.loads(files["adapter_config.json"]) | {"peft_type": "<b>IA3</b>"}
    drop(visitor, files | {"adapter_config.json": json.dumps(config).encode()})
    page.locator("#name").fill("wrong")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#uploads .state").first).to_have_text("refused", timeout=60_000)
    assert "<b>IA3</b>" in page.locator("#uploads li").first.inner_text()
    assert page.locator("#uploads b").count() == 0
    page.locator("#name").fill("nothing")
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_role("alert")).to_contain_text("needed")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_everything_can_be_read(visit: Any, theme: str, size: str) -> None:
    visitor = visit(theme=theme, size=size)
    page = visitor.page
    visitor.ask(PROMPT, method="hilora", other="fusion", most="5")
    expect(page.locator(".map")).to_have_count(2)
    papers = set()
    for view in ("Ask", "Pool"):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.locator(f"#{view.lower()}")).to_be_visible()
        if view == "Pool":
            expect(page.locator("#adapters tbody tr")).not_to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        found = page.evaluate(CONTRASTS)
        assert len(found) > 10
        assert [each for each in found if each["ratio"] < LEAST] == []
        papers.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert papers == {"rgb(255, 255, 255)" if theme == "light" else "rgb(20, 23, 26)"}


def test_all_of_it_works_without_a_mouse(visit: Any) -> None:
    visitor = visit()
    page = visitor.page
    expect(page.locator("#method option")).not_to_have_count(0)
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "[document.activeElement.id || document.activeElement.textContent,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(here[0])
        assert here[1] != "none", here
        if here[0] == "go":
            break
    assert reached[:3] == ["To the content", "to-ask", "to-pool"]
    assert reached[-7:] == ["prompt", "method", "other", "most", "temperature", "seed", "go"]
    page.get_by_label("Prompt").focus()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".map")).to_have_count(1)
    page.locator(".map").locator("xpath=..").focus()
    before = page.locator(".map").locator("xpath=..").evaluate("e => e.scrollLeft")
    page.keyboard.press("Home" if before else "ArrowRight")
    page.locator("#to-pool").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#pool")).to_be_visible()
    page.locator("#files").focus()
    assert page.locator("label[for=files]").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    page.get_by_role("button", name="Ask alpha").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: Any) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server that needs tokens, and two of them."""
    with bench(tmp_path_factory.mktemp("closed")) as made:
        state = State(made.pool.path)
        tokens = {
            "reader": state.add_token("t", ["use"])[0],
            "sender": state.add_token("t", ["use", "upload"])[0],
        }
        with server(made) as running:
            yield running, tokens


def test_a_token_is_asked_for_and_opens_what_it_is_for(visit: Any, closed: Any) -> None:
    running, tokens = closed
    visitor = visit(running.url)
    page = visitor.page
    expect(page.get_by_role("alert")).to_contain_text("token is needed")
    expect(page.locator("#token")).to_be_focused()
    page.keyboard.type("hlr_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not known")
    for name, may in (("reader", False), ("sender", True)):
        page.locator("#token").fill(tokens[name])
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#served")).to_contain_text("for t")
        expect(page.get_by_role("alert")).to_be_hidden()
        page.get_by_role("link", name="Pool").click()
        expect(page.locator("#adapters tbody tr")).to_have_count(3)
        assert page.locator("#upload-form").is_visible() == may
        if not may:
            expect(page.get_by_role("button", name="Take out alpha")).to_have_count(0)
            page.locator("#door summary").click()
    page.get_by_role("link", name="Ask", exact=True).click()
    visitor.ask(PROMPT, method="hilora", most="4")
    expect(page.locator(".map")).to_have_count(1)
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href]")
    assert not [text for text in [*kept, *visitor.asked] for secret in tokens.values() if secret in text]
