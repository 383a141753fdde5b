"""Laws of goals: what is shown never contradicts the verdict, and the verdict is that of the unrounded figure."""

from __future__ import annotations

import numpy as np
import pytest

from hilora.errors import InputError
from hilora.evaluate.goals import SIGNS, is_met, shown


def test_a_figure_is_compared_before_it_is_rounded() -> None:
    assert not is_met(99.749, ">= 99.75 %")
    assert shown(99.749, ">= 99.75", 2) == "99.749"
    assert not is_met(99.7951, ">= 99.8")
    assert shown(99.7951, ">= 99.8") == "99.795"
    assert shown(99.6, ">= 99.8") == "99.6"
    assert (is_met(0.2, "within 0.2"), is_met(-0.21, "within 0.2"), is_met(2000.0, "< 2,000 MB")) == (
        True,
        False,
        False,
    )


@pytest.mark.parametrize("sign", SIGNS)
def test_what_is_shown_agrees_with_the_verdict(sign: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        number = round(float(rng.uniform(0, 100)), 1)
        value = float(number + rng.normal() * 10.0 ** rng.integers(-6, 1))
        goal = f"{sign} {number} ms"
        assert is_met(float(shown(value, goal)), goal) == is_met(value, goal)


def test_a_goal_without_a_sign_is_refused() -> None:
    with pytest.raises(InputError, match="a sign and a number"):
        is_met(1.0, "about 3")
