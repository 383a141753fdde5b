"""The bench: its workload, that contenders compute what they should, that every one has its turn. No speed."""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hilora import HiLoRA, Pool
from hilora.bench import run as running
from hilora.bench.contenders import CONTENDERS, check_twins
from hilora.bench.plot import draw
from hilora.bench.rounds import decode, ratios, report, rounded, time_rounds
from hilora.bench.run import Settings, prepared
from hilora.bench.stage import Contender
from hilora.bench.workload import SHARES, make_workload
from hilora.cli.app import app
from hilora.errors import InputError, UnknownNameError
from hilora.planner import Planner
from hilora.pool.export import export_adapter
from hilora.pool.peft import read_adapter

NAMES = [f"a{i}" for i in range(12)]


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from(SHARES), st.integers(0, 5))
def test_every_prompt_has_an_adapter_and_every_one_a_prompt(batch: int, count: int, share: str, seed: int) -> None:
    count = min(batch, count)
    work = make_workload(NAMES, batch=batch, adapters=count, share=share, words=3, new_tokens=2, seed=seed)
    assert len(work.prompts) == len(work.adapters) == batch
    assert len(work.distinct) == (1 if share == "identical" else count)
    sizes = sorted(Counter(work.adapters).values(), reverse=True)
    if share == "distinct":
        assert sizes[0] - sizes[-1] <= 1
    if share == "zipf" and count > 1 and batch >= 4 * count:
        assert sizes[0] > sizes[-1]
    same = make_workload(NAMES, batch=batch, adapters=count, share=share, words=3, new_tokens=2, seed=seed)
    assert same == work


@pytest.mark.parametrize(("batch", "count"), [(4, 5), (40, 13), (4, 0)])
def test_more_adapters_than_fit_are_refused(batch: int, count: int) -> None:
    with pytest.raises(InputError, match="distinct adapters"):
        make_workload(NAMES, batch=batch, adapters=count, share="zipf", words=3, new_tokens=2)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UnknownNameError):
        make_workload(NAMES, batch=2, adapters=1, share="zip", words=3, new_tokens=2)
    with pytest.raises(UnknownNameError):
        Settings(contenders=["bases"]).wanted()


def fake(name: str, log: list[tuple[str, int]], value: float = 0.0) -> Contender:
    logits = torch.linspace(0, 1, 20).view(2, 10) + value
    return Contender(name, lambda tokens: log.append((name, tokens)), lambda: logits)


def test_every_contender_has_its_turn_in_every_round_forwards_and_backwards() -> None:
    log: list[tuple[str, int]] = []
    turns: list[int] = []
    built = [fake("base", log), fake("hilora", log), fake("peft_single", log)]
    times = time_rounds(built, rounds=2, new_tokens=5, device=torch.device("cpu"), on_turn=turns.append)
    assert turns == list(range(1, 10))
    assert [name for name, tokens in log if tokens == 5] == [
        *("base", "hilora", "peft_single"),
        *("peft_single", "hilora", "base"),
        *("base", "hilora", "peft_single"),
    ]
    assert all(len(each["prefill"]) == len(each["whole"]) == 2 for each in times.values())


def test_ratios_are_medians_over_the_rounds() -> None:
    times = {
        "base": {"prefill": [1.0, 1.0, 1.0], "whole": [2.0, 9.0, 3.0]},
        "hilora": {"prefill": [2.0, 2.0, 2.0], "whole": [6.0, 4.0, 6.0]},  # 1/3, 9/4 and 1/2 of base
    }
    assert decode(times["base"]) == [1.0, 8.0, 2.0]
    found = ratios(times)
    assert found == {
        "whole": {"hilora_over_base": 0.5},
        "prefill": {"hilora_over_base": 0.5},
        "decode": {"hilora_over_base": 0.5},
    }
    assert report(times, {"prompt": 100, "new": 20})[2] == ("hilora", "6.00 (4.00 to 6.00)", "0.500", "50", "5")


def test_contenders_are_compared_within_each_round() -> None:
    base, ours = {"prefill": [1.0] * 3, "whole": [2.0, 9.0, 4.0]}, {"prefill": [1.0] * 3, "whole": [4.0, 6.0, 16.0]}
    found = ratios({"base": base, "hilora": ours})
    assert found["whole"] == {"hilora_over_base": 0.5}  # of 2/4, 9/6 and 4/16; the medians are as 4 to 6


def test_decoding_that_noise_outweighs_is_told_and_drawn(tmp_path: Path) -> None:
    times = {"base": {"prefill": [0.002, 0.003], "whole": [0.00203, 0.0021]}}  # 0.03 ms, and less than nothing
    assert decode(times["base"]) == [1e-4, 1e-4]
    assert report(times, {"prompt": 10, "new": 2})[1][-1] == "20000"
    drawn = draw({"seconds": rounded(times), "tokens": {"prompt": 10, "new": 2}}, tmp_path / "bench.svg")
    assert all(path.exists() for path in drawn)


def test_twins_that_differ_are_refused() -> None:
    log: list[tuple[str, int]] = []
    assert check_twins([fake("oracle", log), fake("peft_mixed", log)]) == {"oracle = peft_mixed": 0.0}
    with pytest.raises(InputError, match="should compute the same"):
        check_twins([fake("arrow", log), fake("peft_arrow", log, 0.5)])


@pytest.fixture
def world(shared_pool: Any, tokenizer: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The tiny pool, in which alpha and beta are of one rank; bases and embedders are the tiny ones."""
    model, pool = shared_pool("llama")
    original = HiLoRA.from_pretrained

    def load(base: Any, opened: Any, method: str = "hilora", **_: Any) -> HiLoRA:
        return original(copy.deepcopy(model), opened, method, tokenizer=tokenizer, embedder=embedder)

    monkeypatch.setattr(running.HiLoRA, "from_pretrained", load)
    found: Pool = pool
    return found


def small(**more: Any) -> Settings:
    return Settings(**{"batch": 6, "adapters": 2, "words": 4, "new_tokens": 3, "rounds": 1} | more)


def test_all_contenders_compute_what_they_should_and_are_timed(world: Pool) -> None:
    with prepared(str(world.path), None, None, small()) as bench:
        assert [each.name for each in bench.built] == list(CONTENDERS)
        assert set(bench.header["twins"]) == {"oracle = peft_mixed", "arrow = peft_arrow"}
        assert bench.header["twins"]["oracle = peft_mixed"] < 1e-4
        result = bench.run()
    assert set(result["seconds"]) == set(CONTENDERS)
    for ratio in ("hilora_over_base", "hilora_over_peft_arrow", "pinned_over_peft_mixed", "pinned_over_peft_single"):
        assert result[ratio] > 0
    assert result["tokens"]["new"] == 6 * 2
    assert json.loads(json.dumps(result))["seconds"] == result["seconds"]


def test_hilora_routes_freely_and_pinned_does_not(world: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    planners: set[Planner] = set()
    route = Planner.route

    def seen(self: Any, texts: Any, **options: Any) -> Any:
        found = route(self, texts, **options)
        planners.add(self)
        asked[str(options.get("allow"))] = [{c.name: c.rocs for c in each} for each in self.explain(found)]
        return found

    monkeypatch.setattr(Planner, "route", seen)
    settings = small(contenders=["hilora", "pinned"], method=("mixture", {"k": 2}))
    with prepared(str(world.path), None, None, settings) as bench:
        free, *_ = asked.values()
        assert bench.header["free"] == {
            "distinct": len(set().union(*free)),
            "adapters": sum(map(len, free)) / len(free),
            "rocs": round(sum(sum(each.values()) for each in free) / len(free), 2),
        }
        asked.clear()
        bench.run()
    pinned = [[name] for name in asked.keys() - {"None"}]
    assert asked["None"] == free
    assert len(planners) == 1  # fitted once
    assert len(pinned) == 1
    assert all(len(each) == 1 for each in asked[pinned[0][0]])


def test_given_prompts_are_timed_and_too_few_are_refused(world: Pool) -> None:
    texts = [f"prompt {i}" for i in range(6)]
    with prepared(str(world.path), None, None, small(contenders=["base"], prompts=texts)) as bench:
        assert bench.header["prompts"] == "given"
        assert "free" not in bench.header
    with pytest.raises(InputError, match="Give --batch 5"):
        make_workload(NAMES, batch=6, adapters=2, share="zipf", words=3, new_tokens=2, prompts=texts[:5])
    work = make_workload(NAMES, batch=4, adapters=2, share="zipf", words=3, new_tokens=2, prompts=texts)
    assert work.prompts == texts[:4]


def test_the_command_writes_a_line_and_a_plot(world: Pool, tmp_path: Path) -> None:
    out, plot = tmp_path / "new" / "bench.jsonl", tmp_path / "bench.svg"
    options = ["--contenders", "base,hilora", "--batch", "4", "--adapters", "2", "--words", "3", "--new-tokens", "2"]
    for _ in range(2):
        found = CliRunner().invoke(
            app,
            ["bench", "--pool", str(world.path), *options, "--rounds", "1", "--json", str(out), "--plot", str(plot)],
        )
        assert found.exit_code == 0, found.output
    assert "hilora_over_base" in found.stdout
    assert [json.loads(line)["batch"] for line in out.read_text().splitlines()] == [4, 4]
    assert plot.read_text().startswith("<?xml")


def test_whatever_method_is_timed_is_called_hilora(world: Pool) -> None:
    wanted = ["base", "hilora", "base"]
    for method in ("arrow", "hilora-gs"):
        with prepared(str(world.path), None, None, small(contenders=wanted, method=(method, {}))) as bench:
            assert "hilora_over_base" in bench.run()
            assert [each.name for each in bench.built] == ["base", "hilora"]
    with pytest.raises(UnknownNameError), prepared(str(world.path), None, None, small(method=("hilor", {}))):
        pass


def test_without_peft_its_contenders_are_left_out_or_refused(world: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with (
        pytest.raises(InputError, match="not installed"),
        prepared(str(world.path), None, None, small(contenders=["base", "peft_single"])),
    ):
        pass
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda name: None)
    assert not any(name.startswith("peft") for name in Settings().wanted())


def test_peft_arrow_needs_one_rank(world: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running.alike(world) == ["alpha", "beta"]
    monkeypatch.setattr(running, "alike", lambda pool: list(pool.names))
    with (
        pytest.raises(InputError, match="one rank"),
        prepared(str(world.path), None, None, small(contenders=["base", "peft_arrow"])),
    ):
        pass


def test_an_exported_adapter_is_the_same_adapter(world: Pool, tmp_path: Path) -> None:
    for name in world.names:  # of mixed ranks
        folder = export_adapter(world, name, tmp_path / name)
        entry = world.entries[world.index(name)]
        assert read_adapter(folder, name=name, sites=world.base.sites).hash == entry.hash
        with pytest.raises(InputError, match="holds an adapter already"):
            export_adapter(world, name, folder)
