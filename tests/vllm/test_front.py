"""Compositions are what this process made of its pool; whatever else comes is refused or dropped, never obeyed."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hilora import Pool
from hilora.base.fingerprint import describe_base
from hilora.errors import MismatchError
from hilora.gateway.parts import Part
from hilora.pool.canonical import canonical_factors
from hilora.pool.export import WEIGHTS
from hilora.pool.store import ADAPTERS
from hilora.vllm.folders import Folders, number_of
from hilora.vllm.front import Front, asking, salted, seal
from hilora.vllm.wire import FIELD, Composition, WireError, encode

PRETENDED = Composition((Part("a" * 64, 1.0, 1, 1),))


@pytest.fixture
def pool(shared_pool: Any, tmp_path: Path) -> Pool:
    shutil.copytree(shared_pool("llama")[1].path, tmp_path / "pool")
    return Pool.open(tmp_path / "pool")


@pytest.fixture
def front(pool: Pool, tmp_path: Path) -> Front:
    return Front(Folders(pool.path, tmp_path / "folders"), 3)


def part(pool: Pool, name: str, rocs: int = 1, form: str = "") -> Part:
    entry = pool.entries[pool.index(name)]
    return Part(form + entry.hash, 1.0, rocs, entry.rank)


def test_what_was_sealed_here_is_taken_though_it_was_copied(front: Front) -> None:
    assert front.take(copy.deepcopy(seal(PRETENDED)), False) == PRETENDED
    assert front.take(seal(None), False) is None
    assert front.take({"other": 1}, False) is None


@pytest.mark.parametrize("value", [encode(PRETENDED), {}, "x", 0, False, []])
def test_what_was_not_made_here_is_refused_and_not_served_by_the_base(front: Front, value: Any) -> None:
    with pytest.raises(WireError, match=r"hilora\.vllm\.params"):
        front.take({FIELD: value}, False)


def test_what_a_client_sends_is_dropped_for_what_the_server_decided(front: Front) -> None:
    own = Composition((Part("b" * 64, 1.0, 1, 1),))
    for decided in (None, own):
        with asking(decided):
            for extra in (None, {FIELD: encode(PRETENDED)}, seal(PRETENDED)):
                assert front.take(extra, False) == decided
    with pytest.raises(WireError):
        front.take({FIELD: encode(PRETENDED)}, False)


def test_a_lora_of_vllms_own_and_a_composition_are_not_mixed(front: Front) -> None:
    assert front.take(None, True) is None
    with pytest.raises(WireError, match="Leave one of them out"):
        front.take(seal(PRETENDED), True)


def test_no_client_can_write_a_salt_that_is_a_compositions() -> None:
    own = salted(None, PRETENDED)
    assert own is not None
    for forged in (own, own.removeprefix("composition "), PRETENDED.digest, f"{PRETENDED.digest} "):
        assert salted(forged, None) not in (own, salted("", PRETENDED))
    salts = [salted(salt, each) for salt in (None, "x", "y") for each in (None, PRETENDED)]
    assert salts[0] is None
    assert len(set(salts)) == len(salts)


def test_more_adapters_or_a_higher_rank_than_there_is_room_for_is_refused(front: Front, pool: Pool) -> None:
    all_four = Composition(tuple(part(pool, name) for name in pool.names))
    with pytest.raises(WireError, match="--max-loras 4 or more, and HILORA_VLLM_PLACES=4"):
        front.check(all_four, 8, 8)
    with pytest.raises(WireError, match="2 are served at once"):
        front.check(Composition(all_four.parts[:3]), 2, 8)
    with pytest.raises(WireError, match="--max-lora-rank of at least 6"):
        front.check(Composition((part(pool, "delta"),)), 8, 4)
    assert not front.folders.root.exists()


def test_an_adapter_is_ready_in_the_form_that_is_asked_for(front: Front, pool: Pool) -> None:
    asked = part(pool, "alpha"), part(pool, "alpha", 1, "canonical ")
    front.check(Composition(asked), 8, 8)
    kept = pool.factors(asked[0].content)
    for own, wanted in zip(asked, (kept, canonical_factors(kept)), strict=True):
        found = load_file(front.folders.path(own.content) / WEIGHTS)
        for site, (down, up) in wanted.items():
            torch.testing.assert_close(found.pop(f"base_model.model.{site}.lora_A.weight"), down)
            torch.testing.assert_close(found.pop(f"base_model.model.{site}.lora_B.weight"), up)
        assert not found
    assert number_of(asked[0].content) != number_of(asked[1].content)
    assert all(1 << 60 <= number_of(own.content) < 1 << 61 for own in asked)


def test_an_adapter_that_is_gone_is_refused_unless_it_was_ready_before(front: Front, pool: Pool) -> None:
    before, gone = Composition((part(pool, "alpha"),)), Composition((part(pool, "beta"),))
    front.check(before, 8, 8)
    for own in (*before.parts, *gone.parts):
        (pool.path / ADAPTERS / f"{own.content}.safetensors").unlink()
    front.check(before, 8, 8)
    with pytest.raises(WireError, match="not in the pool"):
        front.check(gone, 8, 8)
    with pytest.raises(WireError, match="not in the pool"):
        front.check(PRETENDED, 8, 8)
    assert [path.parent for path in front.folders.root.rglob(WEIGHTS)] == [
        front.folders.path(before.parts[0].content)
    ]


def test_an_adapter_of_the_output_layer_is_refused(front: Front, pool: Pool, tiny: Any, tmp_path: Path) -> None:
    sites = {"lm_head": pool.base.sites["lm_head"]}
    pool.add("head", tiny.adapter(tmp_path / "head", sites, seed=3), tiny.texts("alpha", 20, 5), tiny.embedder())
    with pytest.raises(WireError, match="adapts lm_head"):
        front.check(Composition((part(pool, "head"),)), 8, 8)


def test_an_engine_without_room_for_the_pool_does_not_start(
    front: Front, pool: Pool, shared_pool: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model = copy.deepcopy(shared_pool("llama")[0]).to(torch.float32)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    front.check_start(base, (3, 8))
    with pytest.raises(MismatchError, match="--enable-lora --max-loras 3 --max-lora-rank 8"):
        front.check_start(base, None)
    with pytest.raises(MismatchError, match=r"rank 6 \(.*delta.*\).* --max-lora-rank 8"):
        front.check_start(base, (3, 1))
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(1)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert not pool.base.is_same(describe_base(str(tmp_path / "other")))
    with pytest.raises(MismatchError, match="Serve that base"):
        front.check_start(str(tmp_path / "other"), (3, 8))
