"""Smoke test of `benchmarks/gpu.py` at a tiny size on the CPU. No speed is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PEFT = ("peft_single", "peft_mixed")
FEW = ("base", "hilora", "oracle", "phatgoose")
SPEEDS = ("transformers", "base", "hilora", "routed", "plain", *PEFT)


@pytest.fixture
def gpu(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = scripts.load("benchmarks/gpu.py")
    small = {"kinds": ("llama",), "registered": (2,), "fig7": (2,), "batches": (2,), "distincts": (4,)}
    small |= {"backend": "eager"}
    monkeypatch.setattr(module, "TINY", replace(module.TINY, **small))
    monkeypatch.setattr(module.equal, "METHODS", FEW)
    monkeypatch.setattr(module.eager, "PROFILED", ("transformers", "hilora"))
    monkeypatch.delitem(module.compiled.MEASUREMENTS, "second start")  # takes a process, see below
    return module


@pytest.fixture
def room(gpu: Any, tmp_path: Path) -> Any:
    return gpu.Room(gpu.TINY, tmp_path, "cpu", 0)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_part_runs_once_and_what_is_known_is_left(gpu: Any, scripts: Any, tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    scripts.run(gpu, "--tiny", "--device", "cpu", "--json", out)
    rows = rows_of(out)
    wanted = [(part, what) for part, each in gpu.measurements(gpu.TINY).items() for what in each]
    assert [(row["part"], row["what"]) for row in rows if "took_s" in row] == wanted
    for row in rows:
        assert {"seed", "commit", "torch", "transformers", "device", "command"} <= row.keys()
        assert row.get("wrong", []) == []
    assert {row["what"]: row["answers"] for row in rows if row.get("answers")}["llama"] > 0
    timed = {row["what"]: row["ms"] for row in rows if "ms" in row}
    assert set(timed["eager, q and v"]) == {"transformers", "base", "hilora", "routed", "oracle", *PEFT}
    compiled = {"base", "hilora", "base_rows", "plain"}
    assert set(timed["compiled, all seven"]) == compiled
    assert set(timed["compiled, q and v"]) == compiled | {"transformers"}
    scripts.run(gpu, "--tiny", "--device", "cpu", "--json", out, "--minutes", 0)
    assert rows_of(out) == rows
    scripts.run(gpu, "--tiny", "--device", "cpu", "--json", out, "--minutes", 0, "--again")  # no time for anything
    assert rows_of(out) == rows
    assert gpu.page.page(rows) == gpu.page.page([])  # a rehearsal is no result


def test_what_fails_is_told_and_the_rest_goes_on(
    gpu: Any, scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(room: Any) -> Any:
        yield {"found": 1}
        raise ValueError("no memory")

    def works(room: Any) -> Any:
        yield {"found": 2}

    monkeypatch.setattr(gpu.eager, "MEASUREMENTS", {"one": fails, "two": works})
    out = tmp_path / "gpu.jsonl"
    for time in (1, 2):
        with pytest.raises(SystemExit, match="1 things were wrong"):
            scripts.run(gpu, "--tiny", "--device", "cpu", "--parts", "eager", "--json", out)
        assert [row["what"] for row in rows_of(out) if row.get("wrong") == ["ValueError: no memory"]] == [
            "one"
        ] * time
        assert [row["what"] for row in rows_of(out) if "took_s" in row] == ["two"]


def test_another_model_than_the_cpus_is_found_out(gpu: Any, tiny: Any, tmp_path: Path) -> None:
    pair = gpu.equal.pair_of(tiny, "llama", tmp_path, "cpu")
    with torch.no_grad():
        pair.there.model.layers[1].mlp.up_proj.weight.mul_(-1)
    count, wrong = gpu.equal.differences(pair, ["hilora"])
    assert 0 < len(wrong) <= count
    assert wrong[0].startswith("hilora, together, prompt 0: ")


def test_who_cannot_be_compiled_is_told_of_and_the_others_are_timed(
    gpu: Any, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    router_of = gpu.compiled.router_of

    def breaks(name: str, *more: Any) -> Any:
        if name == "base":
            raise RuntimeError("a graph breaks")
        return router_of(name, *more)

    monkeypatch.setattr(gpu.compiled, "router_of", breaks)
    rows = list(gpu.compiled.batch("all seven", room))
    assert [row["wrong"] for row in rows if "wrong" in row] == [["RuntimeError: a graph breaks"]]
    assert {row["contender"] for row in rows if "compile_s" in row} == {"hilora", "plain"}
    (timed,) = (row["ms"] for row in rows if "ms" in row)
    assert set(timed) == {"hilora", "base_rows", "plain"}


def test_a_second_process_compiles_for_the_same_pool(gpu: Any, room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        at = command.index("--second") + 1
        found = gpu.compiled.in_second(room, Path(command[at]))
        return SimpleNamespace(returncode=0, stdout=f"compiling\n{json.dumps(found)}\n", stderr="")

    monkeypatch.setattr(gpu.compiled.subprocess, "run", run)
    (row,) = gpu.compiled.second(room)
    assert set(row) == {"load_s", "compile_s", "process_s"}


def test_compiled_contenders_answer_as_the_eager_ones(gpu: Any, room: Any) -> None:
    from gpuing.contend import by_hilora

    pool = room.pool()
    work = room.work(pool)
    for name in ("base", "hilora", "plain"):
        (compiled, *_), _ = gpu.compiled.built_of(name, room, pool, work)
        eager = by_hilora(name, room, pool, work)
        assert [each.text for each in compiled.run(3)] == [each.text for each in eager.run(3)]


def test_one_lora_inside_the_model_is_that_adapter(gpu: Any, room: Any) -> None:
    from gpuing.contend import by_hilora

    pool = room.pool()
    work = room.work(pool, adapters=1, share="identical")
    name = pool.entries[0].name
    plain = by_hilora("plain", room, pool, work)
    oracle = room.router("oracle", pool)
    answers = oracle.generate(list(work.prompts), labels=[name] * len(work.prompts), max_new_tokens=4)
    assert [answer.text for answer in plain.run(4)] == [answer.text for answer in answers]
    base = by_hilora("base", room, pool, work)
    assert not torch.allclose(plain.logits(), base.logits())


def test_the_page_says_what_its_rows_say(gpu: Any) -> None:
    home = ROOT / "benchmarks"
    rows = rows_of(home / "gpu.jsonl") if (home / "gpu.jsonl").exists() else []
    assert gpu.page.page(rows) == (home / "gpu.md").read_text()


def test_the_page_judges_targets_by_the_rows(gpu: Any) -> None:
    about = dict.fromkeys(("date", "torch", "transformers", "peft", "commit"), "x")
    about |= {"device": "NVIDIA H200", "size": "full", "batch": 32, "new_tokens": 32}
    seconds = {name: {"prefill": [0.1, 0.1], "whole": [0.5, 0.5]} for name in SPEEDS}
    seconds["hilora"] = {"prefill": [0.2, 0.2], "whole": [0.6, 0.6]}
    ms = {name: {"prefill_ms": 100.0, "step_ms": 12.9, "whole_ms": 500.0} for name in SPEEDS}
    rows = [
        about | {"part": "eager", "what": "limit", "copy_gb_s": 4000.0, "weight_bytes": 13e9, "limit_ms": 3.4},
        about | {"part": "eager", "what": "eager, q and v", "seconds": seconds, "ms": ms},
        about | {"part": "compiled", "what": "compiled, q and v", "seconds": seconds, "ms": ms},
        about | {"part": "fig5", "what": "registered 5", "registered": 5, "tokens_per_s": {"base": 1200.0}},
        about
        | {"part": "eager", "what": "eager, q and v", "contender": "peft_single", "missing": "PEFT is not there"},
    ]
    text = gpu.page.page(rows)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert lines["a decoding step, eager, q and v: hilora / transformers"].endswith("| 1.00 (1.00 to 1.00) | met |")
    assert lines["the first token, eager, q and v: hilora / transformers"].endswith(
        "| 0.50 (0.50 to 0.50) | missed |"
    )
    assert lines["a decoding step, compiled: base / the limit"].endswith("| 3.79 | missed |")
    assert lines["embedding and routing of 32 prompts"].endswith("not measured |")
    assert "| 5 | 1,200 |" in text
    assert "PEFT is not there" in text
