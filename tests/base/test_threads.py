"""Laws of threads: small work has one, whatever the machine has, and nobody else notices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hilora.analyse.bounds import bhattacharyya, normals
from hilora.analyse.confusion import diagnose_pool
from hilora.analyse.rocs import two_groups
from hilora.analyse.unseen import chernoff, expected_scores, fit_unseen
from hilora.base.embed import FEW_CHARACTERS, Embedder
from hilora.base.encoders import Encoder
from hilora.base.prompts import UNBOUNDED
from hilora.base.threads import MANY_ROWS, one_thread
from hilora.evaluate.routing import SCORERS
from hilora.methods.lookup import get_method
from hilora.pool.canonical import canonical_factors
from hilora.route.experts import calibrate
from hilora.route.ridge import choose_ridge


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    """A machine whose work has three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_block_has_one_thread_and_leaves_as_many_as_there_were() -> None:
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_many_rows_keep_all_threads() -> None:
    with one_thread(MANY_ROWS + 1):
        assert torch.get_num_threads() == 3
        with one_thread(MANY_ROWS):
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_blocks_that_overlap_leave_as_many_as_there_were() -> None:
    inside, leave = threading.Event(), threading.Event()
    left: list[int] = []

    def other() -> None:
        with one_thread():
            inside.set()
            leave.wait()
        left.append(torch.get_num_threads())

    one = threading.Thread(target=other)
    with one_thread():
        one.start()
        inside.wait()
    leave.set()
    one.join()
    assert (left, torch.get_num_threads()) == ([3], 3)


def unseen(pool: Any) -> None:
    """All that is asked of an unseen task."""
    model = get_method("hilora").router.fit(pool).model_
    q, adapters = fit_unseen(model, pool.embeddings()[0]), normals(model)
    expected_scores(q, adapters)
    chernoff(q, adapters)
    bhattacharyya(adapters)


FITS: dict[str, Callable[[Any], Any]] = {
    "own covariances": get_method("hilora").router.fit,
    "one covariance": get_method("hilora", covariance="tied", candidates="top").router.fit,
    "posterior": get_method("hilora-plus").router.fit,
    "ridge": lambda pool: choose_ridge(pool.embeddings()),
    "calibration": lambda pool: calibrate(pool.samples()),
    "diagnosis": diagnose_pool,
    "unseen task": unseen,
    "canonical ROCs": lambda pool: [canonical_factors(pool.factors(entry.hash)) for entry in pool.entries],
    "groups of ROCs": lambda _: two_groups(torch.nn.functional.normalize(torch.randn(8, 16), dim=1), "sign_free"),
    **{f"scorer {name}": lambda pool, own=scorer: own(pool.samples()) for name, scorer in SCORERS.items()},
}
COSINES = "scorer cosine"
"""Has nothing to decompose."""


@pytest.mark.parametrize("fit", FITS)
def test_a_small_pool_is_fitted_on_one_thread(fit: str, shared_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pool = shared_pool("llama")
    seen: list[int] = []

    def watched(name: str) -> None:
        own = getattr(torch.linalg, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(torch.get_num_threads())
            return own(*args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, call)

    for name in ("svd", "cholesky", "qr", "eigh", "solve", "solve_triangular"):
        watched(name)
    FITS[fit](pool)
    assert set(seen) == (set() if fit == COSINES else {1})
    assert torch.get_num_threads() == 3


def test_few_short_texts_are_embedded_on_one_thread_and_many_on_all(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(texts: list[str]) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.ones(len(texts), 3)

    monkeypatch.setattr("hilora.base.embed.plain_encoder", lambda *_: Encoder(watched, None, UNBOUNDED))
    embedder = Embedder(str(tiny.bert(tmp_path / "embedder")), instruction="")  # embeds once, to know its dim
    embedder(["a" * (FEW_CHARACTERS // 2)] * 2)
    assert seen == [1, 1]
    embedder(["a" * (FEW_CHARACTERS // 2), "a" * (FEW_CHARACTERS // 2 + 1)])
    embedder(["a"] * (FEW_CHARACTERS + 1), batch_size=FEW_CHARACTERS)
    assert seen == [1, 1, 3, 3, 3]
    embedder.instruction = "embed"  # counts as the encoder reads it
    embedder(["a" * FEW_CHARACTERS])
    assert seen[-1] == 3
    assert torch.get_num_threads() == 3
