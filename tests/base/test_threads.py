"""Laws of threads: small work has one, whatever the machine has, and nobody else notices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hilora.analyse.confusion import diagnose_pool
from hilora.base.threads import MANY_ROWS, one_thread
from hilora.methods.lookup import get_method
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


FITS: dict[str, Callable[[Any], Any]] = {
    "own covariances": get_method("hilora").router.fit,
    "one covariance": get_method("hilora", covariance="tied", candidates="top").router.fit,
    "posterior": get_method("hilora-plus").router.fit,
    "ridge": lambda pool: choose_ridge(pool.embeddings()),
    "calibration": lambda pool: calibrate(pool.samples()),
    "diagnosis": diagnose_pool,
}


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

    watched("svd")
    watched("cholesky")
    FITS[fit](pool)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3
