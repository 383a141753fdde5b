"""Laws of an installed pool: its wheel holds all of it, and once installed it is found by its name and opens."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hilora import Planner, get_method
from hilora.pool import Pool
from hilora.pool.source import find_pool
from hilora.pool.trained import TRAINED

FLAN = Path(__file__).parents[2] / "pools" / "flan-mini"
IN_WHEEL = "hilora_flan_mini"
NOT_OF_THE_POOL = {"pyproject.toml", ".gitignore", ".lock"}
OF_A_SERVER = "serve/"  # the tokens and the audit of whoever serves it from here


def listed(folder: Path) -> set[str]:
    """The files that the wheel of a folder would hold, as hatchling lists them."""
    from hatchling.builders.wheel import WheelBuilder

    return {file.distribution_path for file in WheelBuilder(str(folder)).recurse_included_files()}


def test_the_wheel_of_flan_mini_holds_every_file_of_the_pool() -> None:
    own = {path.relative_to(FLAN).as_posix() for path in FLAN.rglob("*") if path.is_file()} - NOT_OF_THE_POOL
    kept = {name for name in own if not name.startswith((".partial-", OF_A_SERVER))}
    assert {f"{IN_WHEEL}/{name}" for name in kept} == listed(FLAN)
    assert f"{IN_WHEEL}/{TRAINED}/phatgoose.safetensors" in listed(FLAN)


def test_a_pool_that_is_built_and_installed_is_found_by_its_name_and_routes(
    shared_pool: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pool = shared_pool("llama")
    source = Path(shutil.copytree(pool.path, tmp_path / "source"))
    for name in ("pyproject.toml", "README.md", "NOTICE"):
        shutil.copy(FLAN / name, source)
    (source / "cards").mkdir()
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist")]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(wheel)], check=True, capture_output=True)

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    opened = Pool.open(find_pool("flan-mini"))
    assert opened.path == tmp_path / "site" / IN_WHEEL
    assert opened.names == pool.names
    for name in ("hilora-plus", "phatgoose", "ramole", "smear", "lorahub"):
        planner = Planner(opened, get_method(name), tiny.embedder())
        route = planner.route(["abab"]).route
        assert route is not None
        assert bool((route.weights > 0).any())
