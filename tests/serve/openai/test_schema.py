"""The OpenAPI document holds, whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks

OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/route"),
    ("POST", "/v1/activations"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
]
RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
CASES = [(*each, RIGHT) for each in OPERATIONS] + [(*each, WRONG) for each in OPERATIONS if each[0] == "POST"]


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_responses_are_as_described(app: Any, method: str, path: str, mode: schemathesis.GenerationMode) -> None:
    for each in app.openapi()["paths"].values():
        for operation in each.values():
            del operation["security"]  # whoever comes without a token is served by the desk of these tests
    described = schemathesis.openapi.from_asgi("/openapi.json", app)[path][method]
    statuses = set()

    @given(case=described.as_strategy(generation_mode=mode))
    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    def check(case: schemathesis.Case) -> None:
        # requests of the right form may contradict themselves, or name what is not there
        statuses.add(case.call_and_validate(excluded_checks=[checks.positive_data_acceptance]).status_code)

    check()
    wanted = 404 if "{" in path else 200  # a name that was drawn may be there
    assert (wanted if mode == RIGHT else 400) in statuses
    assert mode == RIGHT or 200 not in statuses


def test_every_path_says_what_it_is_for(app: Any) -> None:
    document = app.openapi()
    found = [(method.upper(), path) for path, each in document["paths"].items() for method in each]
    assert sorted(found) == sorted(OPERATIONS)
    for path, methods in document["paths"].items():
        for each in methods.values():
            assert each["summary"], path
            assert each["description"], path
            assert each["responses"]["200"]["content"]["application/json"]["schema"], path
            assert "422" not in each["responses"], path
            if body := each.get("requestBody"):
                assert body["content"]["application/json"]["examples"], path
