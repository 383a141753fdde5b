"""The embedder and the routers on a card that is played (`card`): the same routes, and nobody waits in vain."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from card import CUDA, played

from hilora import METHODS, Planner, Pool, get_method
from hilora.base import devices
from hilora.base.devices import at, meet, parse_device, reading_device, send
from hilora.base.embed import Embedder
from hilora.engine.generate import HiLoRA
from hilora.errors import InputError
from hilora.route.gaussian import OwnGaussian
from hilora.route.retriever import Retriever

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132", "?"]
TEXTS = ["abc", "a b c d e f g", "hello, world. " * 40, "x", "", "zz top"]
OPTIONS = [{"method": name} for name in METHODS if not get_method(name).needs_base] + [
    {"method": "hilora", "covariance": "tied", "candidates": "top"},
    {"method": "hilora-plus", "terms": False},
    {"method": "hilora-plus", "candidates": "conformal"},
]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_embedder_on_a_card_embeds_as_on_the_cpu_and_waits_for_nothing(
    pooling: str, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny.bert(tmp_path, pooling))
    expected = Embedder(folder)(TEXTS)
    with played(monkeypatch) as card:
        embedder = Embedder(folder, device="cuda:0")
        card.waits.clear()
        found = embedder(TEXTS)
        assert not +card.waits
        assert found.device.type == "cuda"
        assert embedder([]).shape == (0, embedder.dim)
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("learned", [False, True])
def test_a_card_routes_as_the_cpu_does_and_is_waited_for_only_for_its_scores(
    options: dict[str, Any], learned: bool, copied: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: Pool = copied(learned)
    method = dict(options)
    name, deny = method.pop("method"), [["alpha"], [], ["beta", "gamma"], [], []]
    labels = {"labels": ["delta"] * 5} if name == "oracle" else {}
    expected = Planner(pool, get_method(name, **method), embedder).route(PROMPTS, deny=deny, **labels)
    planner = Planner(pool, get_method(name, **method), embedder, device=CUDA)
    with played(monkeypatch) as card:
        planner.route(PROMPTS, deny=deny, **labels)
        card.waits.clear()
        found = planner.route(PROMPTS, deny=deny, **labels)
        assert set(+card.waits) <= {"to the CPU"}
        assert card.waits["to the CPU"] <= 2  # of two witnesses; the third is the CPU's
    assert found.notes == expected.notes
    if expected.route is None or found.route is None:
        assert found.route is expected.route
        return
    assert torch.equal(found.route.ids, expected.route.ids)
    torch.testing.assert_close(found.route.weights, expected.route.weights)
    torch.testing.assert_close(found.route.scores, expected.route.scores)


@pytest.fixture
def copied(shared_pool: Any, tmp_path: Path) -> Any:
    """The shared pool, as it is or with an epoch of its own."""

    def make(learned: bool) -> Pool:
        pool: Pool = shared_pool("llama")[1]
        if not learned:
            return pool
        shutil.copytree(pool.path, tmp_path / "pool")
        own = Pool.open(tmp_path / "pool")
        own.renew_epoch()
        return Pool.open(tmp_path / "pool")

    return make


def test_statistics_lie_on_a_card_once_and_no_longer_than_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(3, 4)
    with played(monkeypatch) as card:
        first = at(table, CUDA)
        assert at(table, CUDA) is first
        assert card.did["_to_copy"] == 1
        assert at(table, torch.device("cpu")) is table
        assert len(devices._kept) >= 1
        before = len(devices._kept)
        del table, first
        gc.collect()
        assert len(devices._kept) == before - 1


def test_a_model_too_large_for_a_card_is_asked_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = OwnGaussian().fit([torch.randn(9, 6) for _ in range(3)])
    asked = torch.randn(2, 6)
    expected = model.score(asked)
    assert meet(asked, model) == (asked, model)
    with played(monkeypatch):
        monkeypatch.setattr(devices, "room_on", lambda device: 100)
        found = model.score(send(asked, CUDA))
        assert found.device.type == "cpu"
        assert torch.equal(found, expected)


def test_a_router_that_is_fitted_anew_forgets_what_lay_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    router, asked = Retriever(), torch.randn(2, 6)
    with played(monkeypatch):
        for seed in (1, 2):
            samples = [torch.randn(5, 6, generator=torch.Generator().manual_seed(seed + i)) for i in range(3)]
            router.mean_ = router.means(samples)
            torch.testing.assert_close(router.score(send(asked, CUDA)).cpu(), router.score(asked))


def test_what_hilora_loads_goes_to_the_base_and_what_is_given_stays(
    shared_pool: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    pool = shared_pool("llama")[1]
    model, loaded = tiny.model("llama"), list[Any]()
    assert reading_device(model) == torch.device("cpu")

    def load(info: Any, path: Path, dtype: Any = None, name: Any = None, device: Any = None) -> Any:
        loaded.append((dtype, device))
        return embedder

    monkeypatch.setattr("hilora.base.embed.EmbedderInfo.load", load)
    monkeypatch.setattr("hilora.engine.generate.reading_device", lambda model: CUDA)
    router = HiLoRA(shared_pool("llama")[0], tiny.tokenizer(), Planner(pool, get_method("hilora")))
    assert router.planner.device == router.over(pool).planner.device == CUDA
    assert router.planner.embedder is embedder
    assert loaded == [(None, CUDA)]
    own = HiLoRA(shared_pool("llama")[0], tiny.tokenizer(), Planner(pool, get_method("hilora"), embedder))
    assert own.planner.device == CUDA
    assert own.planner.embedder.device == torch.device("cpu")
    here = Planner(pool, get_method("hilora"), embedder, device=torch.device("cpu"))
    assert HiLoRA(shared_pool("llama")[0], tiny.tokenizer(), here).planner.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"No device {name!r}"):
        parse_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_on_a_card_prompts_are_embedded_and_routed_as_on_the_cpu(
    options: dict[str, Any], shared_pool: Any, embedder: Any, tmp_path: Path, tiny: Any
) -> None:
    folder = str(tiny.bert(tmp_path))
    torch.testing.assert_close(Embedder(folder, device="cuda")(TEXTS).cpu(), Embedder(folder)(TEXTS))
    pool, method = shared_pool("llama")[1], dict(options)
    name = method.pop("method")
    labels = {"labels": ["delta"] * 5} if name == "oracle" else {}
    expected, found = (
        Planner(pool, get_method(name, **method), embedder, device=torch.device(where)).route(PROMPTS, **labels).route
        for where in ("cpu", "cuda:0")
    )
    if expected is not None and found is not None:
        assert torch.equal(found.ids, expected.ids)
        torch.testing.assert_close(found.weights, expected.weights)
