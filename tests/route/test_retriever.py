"""Cosine retrieval and the soup's choice, against loops."""

import math

import pytest
import torch
from torch import Tensor

from hilora.errors import InputError
from hilora.route.features import Features
from hilora.route.retriever import Retriever, Soup
from hilora.route.router import Query
from hilora.route.samples import Collection
from hilora.types import Route

DIM = 8


@pytest.fixture
def embeddings() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, DIM, generator=generator) for _ in range(6)]


@pytest.fixture
def query() -> Tensor:
    return torch.randn(7, DIM, generator=torch.Generator().manual_seed(1))


def known(embeddings: list[Tensor]) -> Collection:
    return Collection([Features(own) for own in embeddings])


def everything(batch: int) -> Tensor:
    return torch.ones(batch, 6, dtype=torch.bool)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def picked(route: Route, row: int) -> dict[int, float]:
    return {int(i): float(w) for i, w in zip(route.ids[row], route.weights[row], strict=True) if w > 0}


@pytest.mark.parametrize("k", [1, 3, 6, 50])
def test_the_k_nearest_mean_embeddings_are_retrieved_with_equal_weights(
    embeddings: list[Tensor], query: Tensor, k: int
) -> None:
    route = Retriever(k).fit(known(embeddings))(Query(["x"] * 7, query), everything(7))
    for row in range(7):
        scores = [cosine(query[row].double(), e.double().mean(0)) for e in embeddings]
        best = sorted(range(6), key=lambda i: -scores[i])[:k]
        found = picked(route, row)
        assert list(found) == best
        assert all(w == pytest.approx(1 / len(best)) for w in found.values())
        assert route.scores[row, 0] == pytest.approx(scores[best[0]], abs=1e-6)


def test_each_row_retrieves_among_what_it_may_use(embeddings: list[Tensor], query: Tensor) -> None:
    allowed = torch.rand(7, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    allowed[0], allowed[1] = False, True
    route = Retriever(3).fit(known(embeddings))(Query(["x"] * 7, query), allowed)
    assert picked(route, 0) == {}
    for row in range(1, 7):
        alone = Retriever(3).fit(known(embeddings))(Query(["x"], query[row : row + 1]), allowed[row : row + 1])
        assert picked(route, row) == pytest.approx(picked(alone, 0))
        assert len(picked(route, row)) == min(3, int(allowed[row].sum()))
        assert all(bool(allowed[row, i]) for i in picked(route, row))


def test_a_soup_is_one_set_for_all_rows_of_a_domain(embeddings: list[Tensor], query: Tensor) -> None:
    allowed = everything(7)
    allowed[4:, 2] = False  # the last three rows are another domain
    route = Soup(2).fit(known(embeddings))(Query(["x"] * 7, query), allowed)
    for rows in (range(4), range(4, 7)):
        mean = [
            sum(cosine(query[r].double(), e.double().mean(0)) for r in rows) / len(rows)
            if allowed[rows[0], i]
            else -2
            for i, e in enumerate(embeddings)
        ]
        best = sorted(range(6), key=lambda i: -mean[i])[:2]
        assert all(list(picked(route, row)) == best for row in rows)


def test_no_adapter_to_retrieve_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Retriever(0)
