"""Whoever has hilora and asks for nothing has plain vLLM; whoever asks for more than there is is told."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hilora.errors import InputError, MismatchError
from hilora.vllm import plugin
from hilora.vllm.private import names


def test_without_a_pool_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugin.POOL, raising=False)
    monkeypatch.setattr(names, "verify", lambda: pytest.fail("vLLM was looked at"))
    plugin.register()
    door = plugin.door()
    assert (door.name, door.required_tasks) == ("hilora", None)
    assert door.attach_router(None) is None


def test_importing_the_package_needs_no_vllm() -> None:
    assert "vllm" not in sys.modules


@pytest.mark.parametrize("found", ["0.31.1", "0.33.0", "0.320.0", "1.0", "none"])
def test_another_release_of_vllm_is_refused(monkeypatch: pytest.MonkeyPatch, shared_pool: Any, found: str) -> None:
    monkeypatch.setenv(plugin.POOL, str(shared_pool("llama")[1].path))

    def version(name: str) -> str:
        if found == "none" or name != "vllm":
            raise metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MismatchError, match=rf"vLLM 0\.32\.\*, and {found} is installed. Install"):
        plugin.register()


@pytest.mark.parametrize("given", ["0", "65", "-1", "eight", "1.5"])
def test_a_number_of_places_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(plugin.PLACES, given)
    with pytest.raises(InputError, match="1 to 64"):
        plugin.places()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with something to hook."""
    module = ModuleType("stand_in_for_vllm")

    class Thing:
        def act(self, one: int, two: int = 2) -> int:
            return one + two

    module.Thing = Thing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(metadata, "version", lambda name: "0.32.4")
    monkeypatch.setattr(names, "USED", {})
    return module


@pytest.mark.parametrize(
    ("name", "expected", "said"),
    [
        ("Thing.act", "self one two three", r"expected \(self one two three\), got \(self one two\)"),
        ("Thing.went", "self", "nothing of that name"),
        ("Gone.act", "self", "nothing of that name"),
    ],
)
def test_a_name_that_is_not_what_it_was_is_refused(
    monkeypatch: pytest.MonkeyPatch, stand_in: ModuleType, name: str, expected: str, said: str
) -> None:
    monkeypatch.setattr(names, "HOOKED", {f"{stand_in.__name__}:{name}": expected})
    with pytest.raises(MismatchError, match=said):
        names.verify()


def test_a_name_is_hooked_once_however_often(monkeypatch: pytest.MonkeyPatch, stand_in: ModuleType) -> None:
    name = f"{stand_in.__name__}:Thing.act"
    monkeypatch.setattr(names, "HOOKED", {name: "self one two"})
    for _ in range(3):
        names.verify()
        names.wrap(name, lambda stock, self, one, two=2: 10 * stock(self, one, two))
    assert stand_in.Thing().act(1) == 30


def test_every_name_of_vllms_internals_is_listed_in_one_place() -> None:
    folder = Path(names.__file__).parent
    outside = [path.name for path in folder.parent.glob("*.py") if "vllm.v1" in path.read_text()]
    assert outside == []
