"""Checks of types that were written once are made every time, for each function by its own annotations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import remembered
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from hilora.engine.ranked import by_pairs

checked = jaxtyped(typechecker=remembered.beartype)


def times(factor: float) -> Callable[..., Any]:
    @checked
    def inner(x: Tensor, wrong: bool) -> Tensor:
        return "no tensor" if wrong else x * factor  # type: ignore[return-value]

    return inner


def test_functions_inside_functions_keep_what_they_close_over_and_are_checked_each_time() -> None:
    before = len(remembered._made)
    made = [times(factor) for factor in (1.0, 2.0, 3.0)]
    assert len(remembered._made) == before + 2  # of arguments, and of arguments and result
    assert [float(each(torch.ones(1), wrong=False)) for each in made] == [1.0, 2.0, 3.0]
    for each in made:
        with pytest.raises(TypeCheckError, match="return value"):
            each(torch.ones(1), wrong=True)
        with pytest.raises(TypeCheckError, match="parameter 'x'"):
            each(1, wrong=False)


def test_shapes_are_of_each_call() -> None:
    for size in (2, 3):

        @checked
        def inner(x: Float[Tensor, "a b"], y: Float[Tensor, "a b"]) -> Float[Tensor, " a"]:
            return (x * y).sum(1)

        assert inner(torch.ones(size, 4), torch.ones(size, 4)).tolist() == [4.0] * size
        with pytest.raises(TypeCheckError, match="parameter 'y'"):
            inner(torch.ones(size, 4), torch.ones(size, 1))


def test_the_same_name_with_other_annotations_is_another_function() -> None:
    def of(hint: Any) -> Callable[..., Any]:
        def inner(x: Any) -> Any:
            return x

        inner.__annotations__["x"] = hint
        return checked(inner)

    for_numbers, for_texts = of(int), of(str)
    assert (for_numbers(1), for_texts("a")) == (1, "a")
    for each, wrong in ((for_numbers, "a"), (for_texts, 1)):
        with pytest.raises(TypeCheckError, match="parameter 'x'"):
            each(wrong)


def test_the_package_is_checked_by_it() -> None:
    with pytest.raises(TypeCheckError, match="parameter 'like'"):
        by_pairs([2, 2], "no tensor")  # type: ignore[arg-type]
    before = len(remembered._made)
    for _ in range(2):
        placed = by_pairs([2, 2], torch.ones(4))
        with pytest.raises(TypeCheckError, match="parameter 'strength'"):
            placed("no tensor")  # type: ignore[arg-type]
    assert len(remembered._made) <= before + 3  # of arguments, of both, and of the one that was wrong
