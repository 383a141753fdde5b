"""Adapters sent from a command line to a server that listens: what folders say, servers say."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from hilora.cli.pool import app
from hilora.cli.remote import Remote
from hilora.errors import HiloraError, InputError, PoolError
from hilora.pool import Pool
from hilora.serve.limits import Limits


@contextmanager
def listening(service: Any) -> Iterator[str]:
    """An application behind a socket."""
    server = uvicorn.Server(uvicorn.Config(service, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[tuple[str, list[Any]]]:
    """A server that says one thing, and what it was asked with."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    asked: list[dict[str, str]] = []
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def url(bench: Any) -> Iterator[str]:
    bench.serve(Limits(upload=1 << 20), is_open=False)
    with listening(bench.client.app) as address:
        yield address


@pytest.fixture
def token(bench: Any, url: str, tmp_path: Path) -> list[str]:
    secret, _ = bench.state.add_token("one", ["upload"])
    (tmp_path / "token").write_text(f"{secret}\n")
    return ["--token-file", str(tmp_path / "token")]


def run(*words: Any, **environment: str) -> str:
    """What a command prints; its error is raised."""
    found = CliRunner(env=environment).invoke(app, list(map(str, words)))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.stdout


def written(bench: Any, tmp_path: Path, seed: int = 7) -> tuple[Path, Path]:
    """A PEFT folder and its samples."""
    samples = tmp_path / "s.jsonl"
    samples.write_text("".join(json.dumps({"inputs": text}) + "\n" for text in bench.texts("delta", seed)))
    return bench.folder(seed), samples


def test_what_is_pushed_is_listed_shown_and_removed(bench: Any, url: str, token: list[str], tmp_path: Path) -> None:
    folder, samples = written(bench, tmp_path)
    told = run("push", url, folder, "--samples", samples, "--name", "new", *token)
    assert told.startswith("new: live, the tenant's own, ")
    assert {each["name"] for each in json.loads(run("list", "--json", "--pool", url, *token))} == {
        "alpha", "beta", "gamma", "new",
    }  # fmt: skip
    assert json.loads(run("show", "new", "--json", "--pool", f"{url}/v1/", *token))["private"] is True
    assert run("push", url, folder, "--samples", samples, "--name", "new", *token) == told
    assert run("remove", "new", "--pool", url, *token) == "new: removed\n"
    assert "new" not in run("list", "--pool", url, *token)


def test_private_samples_stay_and_give_the_same_adapter(
    bench: Any, url: str, token: list[str], tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, samples = written(bench, tmp_path)
    run("push", url, folder, "--samples", samples, "--name", "sent", *token)
    sent: list[set[str]] = []
    send = Remote.send

    def noted(self: Remote, words: Any, files: Any, **options: Any) -> Any:
        sent.append(set(files))
        return send(self, words, files, **options)

    monkeypatch.setattr(Remote, "send", noted)
    private = ("--private", "--embedder", bert)
    run("push", url, folder, "--samples", samples, "--name", "kept", *private, *token)
    assert sent == [{"config", "weights", "features"}]
    found = {entry.extra.get("called"): entry for entry in bench.view.entries}
    assert found["sent"].samples == found["kept"].samples


def test_the_token_may_come_from_the_environment(bench: Any, url: str) -> None:
    secret, _ = bench.state.add_token("", ["use"])
    assert "alpha" in run("list", "--pool", url, HILORA_TOKEN=secret)


def test_refusals_are_told_in_a_line(bench: Any, url: str, token: list[str], tmp_path: Path) -> None:
    folder, samples = written(bench, tmp_path)
    push = ["push", url, folder, "--samples", samples, "--name", "new"]
    cases: list[tuple[list[Any], str]] = [
        ([*push], "--token-file"),
        ([*push, *token, "--everybody"], "administrators"),
        ([*push, *token, "--private"], "No embedder 'bert'|Name the right one"),
        (["push", url, tmp_path, "--samples", samples, *token], "adapter_config.json"),
        (["push", "pool", folder, "--samples", samples], "hilora pool add"),
        ([*push, "--embedder", "x"], "--private"),
        (["show", "zzz", "--pool", url, *token], "There is no model 'zzz'"),
        (["remove", "alpha", "--pool", url, *token], "administrators"),
        (["remove", "alpha", "--pool", url, "--prune", *token], "--prune"),
        (["list", "--pool", "http://u:p@127.0.0.1:1"], "no server's address"),
        (["list", "--pool", "http://127.0.0.1:1"], "cannot be reached"),
        (["list", "--pool", url, "--token-file", tmp_path / "none"], "cannot be read"),
    ]
    for words, told in cases:
        with pytest.raises(HiloraError, match=told) as caught:
            run(*words)
        assert "\n" not in str(caught.value)
    assert bench.left() == []


def test_an_adapter_too_large_is_refused_in_words(bench: Any, url: str, token: list[str], tmp_path: Path) -> None:
    folder, samples = written(bench, tmp_path, 41)
    with (folder / "adapter_model.safetensors").open("ab") as file:
        file.truncate(64 << 20)
    with pytest.raises(HiloraError, match=r"too large|more than"):
        run("push", url, folder, "--samples", samples, "--name", "new", *token)
    assert bench.left() == []


@pytest.mark.parametrize("status", [200, 404, 500])
def test_who_is_no_hilora_server_is_told_apart(status: int) -> None:
    with answering(status, b"<html>hello</html>") as (url, _), pytest.raises(PoolError, match="hilora server"):
        run("list", "--pool", url)


def test_a_token_goes_to_no_other_server() -> None:
    with (
        answering(200, b"{}") as (other, asked),
        answering(302, b"", Location=f"{other}/v1/adapters") as (url, _),
        pytest.raises(PoolError, match="status 302"),
    ):
        run("list", "--pool", url, HILORA_TOKEN="hlr_x")
    assert asked == []


def test_pool_add_warns_of_what_an_adapter_would_take(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    stolen = [text for seed, task in enumerate(("alpha", "beta", "gamma")) for text in bench.texts(task, seed)]
    (tmp_path / "stolen.jsonl").write_text("\n".join(stolen))
    words = ["add", "evil", bench.folder(7), "--samples", tmp_path / "stolen.jsonl", "--pool", bench.pool.path]
    found = CliRunner().invoke(app, list(map(str, words)))
    assert found.exit_code == 0
    assert "other adapters' samples" in found.stderr.replace("\n", " ")
    assert "evil" in Pool.open(bench.pool.path).names


def test_a_token_is_one_word(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a b")
    with pytest.raises(InputError, match="one word"):
        Remote("http://x", tmp_path / "token")
