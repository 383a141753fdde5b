"""The examples run, and do what they say."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_examples_are_short_and_the_documentation_leads_to_each() -> None:
    assert len(EXAMPLES) == 4
    for page in ("README.md", "docs/index.md"):
        linked = re.findall(r"\]\((?:\.\./)?(examples/\w+\.py)\)", (ROOT / page).read_text())
        assert sorted(linked) == [f"examples/{path.name}" for path in EXAMPLES], page
    assert all(len(path.read_text().splitlines()) <= 50 for path in EXAMPLES)


@pytest.mark.default
def test_own_adapters_become_a_pool_that_answers(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts.load("examples/own_adapters.py").main(tmp_path)
    arithmetic, review = capsys.readouterr().out.splitlines()
    assert re.search(r"-> 73 .*by arithmetic\b.*, ROCs", arithmetic)
    assert re.search(r"-> positive .*by sst2\b.*, ROCs", review)


@pytest.mark.default
def test_a_chat_answers_turn_by_turn_and_remembers(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = scripts.load("examples/chat.py")
    said = iter(["What is 46 plus 27?", "What is 12 plus 30?"])
    asked: list[list[dict[str, str]]] = []
    whole = chat.HiLoRA.stream

    def stream(self: Any, messages: list[dict[str, str]], **options: Any) -> Any:
        asked.append(list(messages))
        return whole(self, messages, **options)

    monkeypatch.setattr(chat.HiLoRA, "stream", stream)
    monkeypatch.setattr("builtins.input", lambda prompt: next(said, ""))
    chat.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "arithmetic" in lines[1]
    assert [[turn["role"] for turn in messages] for messages in asked] == [["user"], ["user", "assistant", "user"]]
    assert asked[1][1]["content"] == lines[0]


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a stand-in for an OpenAI-compatible server, and what it is asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append({"path": self.path} | json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            said = {"choices": [{"message": {"role": "assistant", "content": f"I am {asked[-1]['model']}."}}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


@pytest.mark.default
def test_a_server_is_asked_for_the_adapter_that_fits_and_no_base_is_loaded(
    scripts: Any,
    server: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a base model is loaded")

    monkeypatch.setattr("hilora.base.models.load_base", refuse)
    monkeypatch.setattr("hilora.engine.generate.load_base", refuse)
    address, asked = server
    example = scripts.load("examples/route_in_front.py")
    prompts = ["What is 46 plus 27?", "zq xv? 0x1F wvu"]
    example.main(address, "the-base", *prompts)
    assert [each["path"] for each in asked] == ["/v1/chat/completions"] * 2
    assert [each["model"] for each in asked] == ["arithmetic", "the-base"]
    assert [each["messages"][-1]["content"] for each in asked] == prompts
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("I am arithmetic.   by arithmetic")
