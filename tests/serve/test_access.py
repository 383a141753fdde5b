"""Laws of tokens: kept as hashes, good for what they say, refused once they are taken back."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

import pytest
from fastapi import Request
from typer.testing import CliRunner

from hilora.cli.serve_tokens import app
from hilora.errors import InputError
from hilora.serve.access import Doorkeeper, check_bind
from hilora.serve.limits import Limits


def test_a_secret_is_kept_nowhere_and_logged_nowhere(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    bench.serve(is_open=False)
    who = bench.token("one")
    secret = who["Authorization"].split()[1]
    assert bench.send("new", who=who).status_code == 201
    bench.uploads.close()
    for path in (bench.pool.path / "serve").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes()
    assert secret not in caplog.text
    with sqlite3.connect(bench.pool.path / "serve" / "state.sqlite") as found:
        digests = [row[0] for row in found.execute("select digest from tokens")]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer hlr_x"}, {"Authorization": "Basic eA=="}])
def test_without_a_token_nothing_is_told(bench: Any, header: dict[str, str]) -> None:
    bench.serve(is_open=False)
    calls = [bench.client.get("/v1/adapters", headers=header), bench.send("new", who=header)]
    calls += [bench.client.delete("/v1/adapters/alpha", headers=header)]
    assert {each.status_code for each in calls} == {401}
    assert "alpha" not in "".join(each.text for each in calls)
    assert bench.left() == []


def test_a_token_is_for_what_it_says(bench: Any) -> None:
    bench.serve(is_open=False)
    use, upload = bench.token("one", "use"), bench.token("one", "upload")
    assert bench.send("new", who=use).status_code == 403
    assert bench.send("new", who=upload).status_code == 201
    assert bench.client.delete("/v1/adapters/new", headers=use).status_code == 403
    assert "new" in bench.names(use)
    nobodys, admin = bench.token("", "use", "upload"), bench.token("", "admin")
    assert bench.send("other", who=nobodys).status_code == 403
    assert bench.client.delete("/v1/adapters/beta", headers=nobodys).status_code == 403
    assert bench.send("other", who=admin).status_code == 201


def test_a_token_taken_back_is_refused_by_the_next_server(bench: Any) -> None:
    bench.serve(is_open=False)
    secret, token = bench.state.add_token("one", ["use"])
    who = {"Authorization": f"Bearer {secret}"}
    bench.state.revoke(token.id)
    assert bench.client.get("/v1/adapters", headers=who).status_code == 401


def test_a_token_taken_back_while_it_is_known_is_refused_soon(bench: Any) -> None:
    bench.serve(is_open=False)
    now = [0.0]
    door = Doorkeeper(bench.state, False, clock=lambda: now[0])
    secret, token = bench.state.add_token("one", ["use"])

    asked = Request({"type": "http", "headers": [(b"authorization", f"Bearer {secret}".encode())]})
    assert door(asked).tenant == "one"
    bench.state.revoke(token.id)
    now[0] = 6.0
    with pytest.raises(Exception, match="not known"):
        door(asked)


def test_requests_of_a_token_have_a_bound_of_their_own(bench: Any) -> None:
    bench.serve(Limits(requests_per_minute=2), is_open=False)
    one, two = bench.token("one"), bench.token("two")
    codes = [bench.client.get("/v1/adapters", headers=who).status_code for who in (one, one, one, two)]
    assert codes == [200, 200, 429, 200]


def test_who_others_reach_needs_tokens(bench: Any) -> None:
    bench.serve()
    for host in ("127.0.0.1", "localhost", "::1"):
        assert check_bind(host, bench.state)
    for host in ("0.0.0.0", "10.0.0.1", "::", "example.org"):
        with pytest.raises(InputError, match="hilora serve token add"):
            check_bind(host, bench.state)
    bench.token("one")
    assert not check_bind("0.0.0.0", bench.state)
    assert not check_bind("127.0.0.1", bench.state)


def test_tokens_from_the_command_line(bench: Any) -> None:
    run, pool = CliRunner(), ["--pool", str(bench.pool.path)]
    made = run.invoke(
        app, ["add", *pool, "--tenant", "one", "--scope", "use", "--scope", "upload", "--note", "for one"]
    )
    secret = made.stdout.strip()
    assert made.exit_code == 0
    assert re.fullmatch(r"hlr_[\w-]{43}", secret)
    bench.serve(is_open=False)
    assert "alpha" in bench.names({"Authorization": f"Bearer {secret}"})
    (token,) = bench.state.tokens()
    listed = run.invoke(app, ["list", *pool]).stdout
    assert (token.id in listed, "one" in listed, secret in listed) == (True, True, False)
    assert run.invoke(app, ["revoke", token.id, *pool]).exit_code == 0
    assert isinstance(run.invoke(app, ["revoke", token.id, *pool]).exception, InputError)
    assert isinstance(run.invoke(app, ["add", *pool, "--scope", "all"]).exception, InputError)
