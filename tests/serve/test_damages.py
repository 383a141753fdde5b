"""Files that are damaged while a pool is served: their adapters serve nobody until they are mended; others go on."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hilora import HiLoRA
from hilora.pool import Pool, store
from hilora.pool.derived import Canonical
from hilora.serve.asked import Ask, Done
from hilora.serve.desk import PoolDesk
from hilora.serve.faults import UnusableError
from hilora.serve.gauges import state_of
from hilora.serve.limits import Limits

PROMPT = "abab baab abba"
FREE = {"eos_token_id": None}


def cut(path: Path) -> None:
    """As `cp` over it does at first: it is the same file, and whoever has mapped it may look at nothing any more."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"cut": cut, "empty": empty, "flipped": flip, "gone": Path.unlink}


@pytest.fixture
def router(shared_pool: Any, joined: Any, embedder: Any, tmp_path: Path) -> HiLoRA:
    model, pool = shared_pool("llama")
    own = Path(shutil.copytree(pool.path, tmp_path / "pool"))
    return HiLoRA.from_pretrained(model, own, "hilora", tokenizer=joined, embedder=embedder)


@pytest.fixture
def desk(router: HiLoRA) -> Iterator[PoolDesk]:
    made = PoolDesk(router, Limits(), methods=("hilora", "hilora-plus", "selection", "fusion"))
    yield made
    made.close(0.0)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def said(desk: PoolDesk, ask: Ask) -> tuple[list[str], str]:
    """Who answers, and what."""
    ticket = await desk.answer(ask)
    (done,) = [event async for event in ticket if isinstance(event, Done)]
    return [choice.name for choice in ticket.why.choices], done.text


def file_of(desk: PoolDesk, name: str, folder: str) -> Path:
    entry = desk.edition.view.entries[desk.edition.view.index(name)]
    content = entry.samples if folder == "samples" else entry.hash
    return Path(desk.edition.view.path) / folder / f"{content}.safetensors"


def value(desk: PoolDesk) -> float:
    found = desk.meters.registry.get_sample_value("hilora_adapters_damaged")
    assert found is not None
    return found


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("method", ["hilora", "hilora-plus", "selection", "fusion"])
def test_whose_weights_are_damaged_serves_nobody_until_they_are_mended(desk: PoolDesk, method: str, how: str) -> None:
    asks = [Ask(PROMPT, max_new_tokens=5, method=method, sampling=FREE), Ask(PROMPT, model="alpha", sampling=FREE)]
    want = [run(said(desk, ask)) for ask in asks]
    path = file_of(desk, "alpha", "adapters")
    whole = path.read_bytes()
    DAMAGES[how](path)
    names, text = run(said(desk, asks[0]))
    assert not any("alpha" in name for name in names)
    assert text
    with pytest.raises(UnusableError, match="'alpha' are damaged"):
        run(said(desk, asks[1]))
    assert (state_of(desk)["damaged"], value(desk)) == (["alpha"], 1)
    assert run(said(desk, Ask(PROMPT, model="beta", sampling=FREE)))[0] == ["beta"]
    path.write_bytes(whole)
    assert [run(said(desk, ask)) for ask in asks] == want
    assert (state_of(desk)["damaged"], value(desk)) == ([], 0)


@pytest.mark.parametrize("how", DAMAGES)
def test_what_is_being_answered_goes_on_when_the_file_is_damaged(desk: PoolDesk, how: str) -> None:
    ask = Ask(PROMPT, model="alpha", max_new_tokens=60, sampling=FREE, follow=True)
    want = run(said(desk, ask))

    async def amid() -> tuple[list[str], str]:
        ticket, text, damaged = await desk.answer(ask), "", False
        async for event in ticket:
            if not damaged:
                DAMAGES[how](file_of(desk, "alpha", "adapters"))
                damaged = True
                others = [
                    said(desk, Ask(PROMPT, model=name, max_new_tokens=3)) for name in ("beta", "gamma", "delta")
                ]
                await asyncio.gather(*others)  # the engine lays all of them out anew
            text = event.text if isinstance(event, Done) else text
        return [choice.name for choice in ticket.why.choices], text

    assert run(amid()) == want


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_canonical_rocs_are_worked_out_anew(desk: PoolDesk, how: str) -> None:
    view = desk.edition.view
    ask = Ask(PROMPT, max_new_tokens=5, method="hilora-plus", sampling=FREE)
    for entry in view.entries:
        store.write_canonical(view.path, entry.hash, Canonical(view).factors(f"canonical {entry.hash}"))
    kept = [Canonical(view).factors(f"canonical {entry.hash}") for entry in view.entries]
    for path in (view.path / "canonical").iterdir():
        DAMAGES[how](path)
    for entry, want in zip(view.entries, kept, strict=True):
        found = Canonical(view).factors(f"canonical {entry.hash}")
        for site, (down, up) in want.items():
            torch.testing.assert_close(found[site], (down, up), rtol=1e-9, atol=1e-9)
    assert "alpha" in run(said(desk, ask))[0]
    assert state_of(desk)["damaged"] == []


@pytest.mark.parametrize("how", DAMAGES)
def test_whose_samples_are_damaged_is_left_out_of_the_next_edition_until_they_are_mended(
    desk: PoolDesk, router: HiLoRA, how: str
) -> None:
    asks = {
        name: Ask(text, max_new_tokens=3, sampling=FREE) for name, text in (("alpha", PROMPT), ("beta", "xyz zzy"))
    }
    path = file_of(desk, "alpha", "samples")
    whole, pool = path.read_bytes(), Pool.open(router.planner.pool.path)
    before = {name: run(said(desk, ask)) for name, ask in asks.items()}
    DAMAGES[how](path)
    assert run(said(desk, asks["alpha"])) == before["alpha"]  # what was learned of them is there
    pool.enable("gamma", False)
    pool.enable("gamma", True)
    pool.tune(always=False)
    desk.change(_changed(pool.path))
    assert state_of(desk)["damaged"] == ["alpha"]
    assert "alpha" not in run(said(desk, asks["alpha"]))[0]
    assert "beta" in run(said(desk, asks["beta"]))[0]
    assert run(said(desk, Ask(PROMPT, model="alpha", max_new_tokens=3)))[0] == ["alpha"]  # its weights are whole
    assert not desk.look_for_mended()
    path.write_bytes(whole)
    assert desk.look_for_mended()
    desk.change(Pool.open(pool.path))
    assert not desk.look_for_mended()
    assert {name: run(said(desk, ask)) for name, ask in asks.items()} == before


def _changed(pool: Path) -> Pool:
    """A view that shares nothing with the one before: all is learned anew."""
    view = Pool.open(pool)
    view.ridge *= 1.0000001
    return view


def test_an_upload_is_taken_beside_damaged_samples(bench: Any) -> None:
    bench.serve()
    entry = bench.view.entries[bench.view.index("alpha")]
    cut(bench.pool.path / "samples" / f"{entry.samples}.safetensors")
    assert bench.send("new").status_code == 201


def test_the_same_upload_again_mends_damaged_files(bench: Any) -> None:
    bench.serve()
    assert bench.send("new").status_code == 201
    entry = bench.view.entries[bench.view.index("new")]
    flip(bench.pool.path / "adapters" / f"{entry.hash}.safetensors")
    cut(bench.pool.path / "samples" / f"{entry.samples}.safetensors")
    assert [each.name for each, wrong in Pool.open(bench.pool.path).check() if wrong] == ["new"]
    assert bench.send("new", put=True).status_code == 201
    assert [each.name for each, wrong in Pool.open(bench.pool.path).check() if wrong] == []
