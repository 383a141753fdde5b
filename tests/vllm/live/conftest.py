"""A random base, a pool of ragged adapters, and vLLM's engine with the plugin; where vLLM is missing, tests fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hilora.pool.pool import Pool
from tests.conftest import default_weights
from tests.vllm.live.compare import LETTERS, Case, cases, engine, texts, tiny_world

CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}


class World(NamedTuple):
    """What is served.

    Attributes:
        environment: for processes with vLLM.
    """

    root: Path
    base: Path
    pool: Pool
    embedder: Any
    environment: dict[str, str]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        default_weights(patch)
        base, pool, embedder = tiny_world(root)
    set_up = CPU | {"HILORA_POOL": str(pool.path), "HILORA_CACHE": str(root / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (set_up | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}).items():
            patch.setenv(name, value)
        patch.delenv("VLLM_PLUGINS", raising=False)
        yield World(root, base, pool, embedder, os.environ | set_up)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return [text for task in LETTERS for text in texts(task, 4, 9)]


@pytest.fixture(scope="session")
def each(world: World, prompts: list[str]) -> list[Case]:
    """Every prompt under every method, and under an adapter that vLLM has as its own."""
    return list(cases(str(world.base), world.pool, world.embedder, prompts, world.root / "loras"))


@pytest.fixture(scope="session")
def llm(world: World) -> Any:
    """An engine that finds the plugin by its entry point."""
    return engine(world.base)
