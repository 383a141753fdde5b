"""`hilora serve --compile`: all steps are compiled when it begins to listen."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from hilora.cli.serve import app


def test_steps_are_compiled_before_anybody_is_let_in(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base, seen = bench.home / "base", list[Any]()
    bench.tiny.model("llama").save_pretrained(base)
    bench.tiny.tokenizer().save_pretrained(base)

    def listen(router: Any, settings: Any, state: Any, say: Any) -> None:
        seen.extend(router.lanes.fixed.ready)

    monkeypatch.setattr("torch.compile", lambda function, **options: function)
    monkeypatch.setattr("hilora.serve.run.serve", listen)
    told = ["--compile", "step", "--compile-rows", "1,2", "--compile-tokens", "64", "--compile-slots", "2"]
    command = ["--pool", str(bench.pool.path), "--base", str(base), "--method", "hilora", *told]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert sorted(seen) == [(1, 64), (2, 64)]
