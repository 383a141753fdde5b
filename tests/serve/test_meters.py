"""Laws of what `/metrics` shows: each thing once, never less than before, nobody's names, all of it in the docs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hilora import HiLoRA, get_method
from hilora.planner import Planner
from hilora.pool.memory import Memory
from hilora.serve.asked import Ask
from hilora.serve.checker import Checker
from hilora.serve.desk import PoolDesk
from hilora.serve.gauges import state_of
from hilora.serve.limits import Limits
from hilora.serve.meters import Meters
from hilora.serve.renew import Renewal

ROOT = Path(__file__).parents[2]
FREE = {"eos_token_id": None}


def shown(meters: Meters) -> dict[str, float]:
    """Sample with its labels -> value; no histograms' buckets, nor when counting began."""
    page = meters.page()[0].decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    found = {f"{each.name}{[value for _, value in sorted(each.labels.items())]}": each.value for each in samples}
    return {name: value for name, value in found.items() if "_created" not in name and "_bucket" not in name}


@pytest.fixture(params=["llama", "t5"])
def desks(request: Any, shared_pool: Any, joined: Any, embedder: Any) -> Iterator[Any]:
    """Makes desks over one pool, with a budget for adapters."""
    model, pool = shared_pool(request.param)
    made: list[PoolDesk] = []

    def desk(limit: int | str) -> PoolDesk:
        planner = Planner(pool, get_method("hilora"), embedder, Memory(limit))
        made.append(PoolDesk(HiLoRA(model, joined, planner), Limits()))
        return made[-1]

    yield desk
    for each in made:
        each.close(0.0)


def ask(desk: PoolDesk, model: str, prompt: str = "abab baab") -> None:
    """One request, to its end."""

    async def whole() -> None:
        async for _ in await desk.answer(Ask(prompt, model=model, max_new_tokens=2, sampling=FREE)):
            pass

    asyncio.run(asyncio.wait_for(whole(), 60))


def adapters(desk: PoolDesk) -> tuple[float, float, float]:
    """Loads, hits, evictions."""
    now = shown(desk.meters)
    loads, hits, gone = (now[f"hilora_adapter_{what}_total[]"] for what in ("loads", "hits", "evictions"))
    return loads, hits, gone


def test_a_cold_adapter_is_one_load_and_each_further_use_a_hit(desks: Any) -> None:
    desk = desks("1GB")
    name, other = desk.edition.view.names[:2]
    assert adapters(desk) == (0, 0, 0)
    ask(desk, name)
    assert adapters(desk) == (1, 0, 0)
    for prompt in ("abab baab", "another prompt"):
        ask(desk, name, prompt)
    assert adapters(desk) == (1, 2, 0)
    ask(desk, other)
    ask(desk, "base")
    assert adapters(desk) == (2, 2, 0)
    now = shown(desk.meters)
    assert now["hilora_adapter_memory_bytes[]"] > 0


def test_bytes_of_adapters_stay_within_their_budget_and_what_goes_is_counted(desks: Any) -> None:
    whole = desks("1GB")
    names = whole.edition.view.names
    ask(whole, names[0])
    size = whole.edition.router.memory.used
    desk = desks(size)
    for name in names * 2:
        ask(desk, name)
        now = shown(desk.meters)
        assert now["hilora_adapter_memory_bytes[]"] <= now["hilora_adapter_memory_limit_bytes[]"] == size
    loads, _, gone = adapters(desk)
    assert loads - gone == sum(entry.hash in desk.edition.router.memory for entry in desk.edition.view.entries)
    assert gone > 0


def test_bytes_laid_out_are_those_of_the_banks_slots(desks: Any) -> None:
    desk = desks("1GB")
    before = shown(desk.meters)["hilora_adapter_slots_bytes[]"]
    ask(desk, desk.edition.view.names[0])
    after = shown(desk.meters)["hilora_adapter_slots_bytes[]"]
    joins = state_of(desk)["lane"] == "joining"
    assert (before, after > 0) == (0, joins)
    slots = [site for bank in desk.edition.banks if bank.slots for site in bank.slots.form.sites.values()]
    tensors = [t for site in slots for t in (site.down, site.up, site.size)]
    assert after >= sum(t.numel() * t.element_size() for t in tensors)


def test_no_counter_falls_whatever_becomes_of_the_pool(desks: Any) -> None:
    desk, before = desks("1GB"), dict[str, float]()
    for name in ("auto", "base", *desk.edition.view.names):
        ask(desk, name)
        desk.change(desk.edition.view)
        now = shown(desk.meters)
        counts = {name: value for name, value in now.items() if "_total" in name or "_count" in name}
        assert all(counts[name] >= value for name, value in before.items())
        before = counts
    assert before["hilora_requests_total['auto']"] == 1


def uploads(bench: Any) -> dict[str, float]:
    """What became of uploads: "reason state" -> how many."""
    found = {name: count for name, count in shown(bench.uploads.meters).items() if "hilora_uploads_total" in name}
    return {" ".join(re.findall(r"'(\w*)'", name)).strip(): count for name, count in found.items()}


class Failing(Checker):
    """Fails as no check should."""

    def __call__(self, task: Any) -> Any:
        raise ZeroDivisionError


def test_each_upload_is_counted_once_by_its_fate(bench: Any) -> None:
    bench.serve()
    texts = "\n".join(
        text for seed, task in enumerate(("alpha", "beta", "gamma")) for text in bench.texts(task, seed)
    )
    bench.send("evil", bench.form(samples=texts.encode()))
    bench.send("new")
    bench.send("new")
    bench.send("new", bench.form(8))
    bench.send("evil", bench.form(weights=b"12345678nothing"))
    bench.send("evil", bench.form(samples=b""))
    bench.send("evil", bench.form(weights=None))
    bench.send("auto")
    assert uploads(bench) == {
        "live": 2,
        "already_exists refused": 1,
        "capture refused": 1,
        "adapter refused": 1,
        "samples refused": 1,
        "missing_required_parameter refused": 1,
        "InputError refused": 1,
    }
    checks = shown(bench.uploads.meters)
    assert checks["hilora_check_seconds_count[]"] == 6
    assert checks["hilora_check_seconds_sum[]"] > 0
    bench.uploads.checker = Failing()
    bench.send("broken")
    assert uploads(bench)["error failed"] == 1
    assert sum(uploads(bench).values()) == 9


def test_what_is_taken_out_is_counted_and_whose_it_was_is_not_told(bench: Any) -> None:
    bench.serve(is_open=False)
    who, admin = bench.token("secretive"), bench.token("", "use", "admin")
    assert bench.send("mine", who=who).status_code == 201
    assert bench.client.delete("/v1/adapters/mine", headers=who).status_code == 200
    assert bench.client.delete("/v1/adapters/alpha", headers=admin).status_code == 200
    now = shown(bench.uploads.meters)
    assert (now["hilora_removals_total['tenant']"], now["hilora_removals_total['everybody']"]) == (1, 1)
    page = bench.uploads.meters.page()[0].decode()
    assert not [word for word in ("mine", "secretive", "alpha") if word in page]


class Ended:
    """A process that has ended."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code


def test_epochs_are_counted_once_each_when_they_end(tmp_path: Path) -> None:
    meters = Meters()
    renewal = Renewal(tmp_path, meters)
    for code in (0, 1, 0):
        renewal._process = Ended(code)  # type: ignore[assignment]
        shown(meters)
    assert shown(meters)["hilora_epochs_total['made']"] == 2
    assert shown(meters)["hilora_epochs_total['failed']"] == 1


def test_the_docs_name_what_is_shown_and_nothing_else(desks: Any, tmp_path: Path) -> None:
    meters = desks("1GB").meters
    Renewal(tmp_path, meters)
    families = list(meters.registry.collect())
    names = {family.name + "_total" * (family.type == "counter") for family in families}
    table = (ROOT / "docs" / "serving.md").read_text().split("| metric |")[1].split("\n\n")[0]
    told = [name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", "".join(row.split("|")[1:2]))]
    assert sorted(told) == sorted(names)
    for family in families:
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= set(re.findall(r"`(\w+)`", table)), family.name
