"""A pool's adapters as PEFT folders named by their content, which vLLM's workers load when a step first needs them.

A folder is written when a request that needs it comes in, and stays: whatever becomes of the pool meanwhile, the
request is served by what it was routed to.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from hilora.base.embedded import cache_dir
from hilora.gateway.parts import Part
from hilora.pool.derived import Canonical
from hilora.pool.export import WEIGHTS, write_peft
from hilora.pool.folder import PoolFolder
from hilora.pool.reading import DamagedError
from hilora.vllm.wire import WireError

NOT_GATED = ("lm_head", "embed_tokens")
"""Modules whose LoRA vLLM applies by ways that compositions do not go."""


class Folders:
    """Where adapters lie for vLLM.

    Args:
        pool: the pool's folder.
        root: where the folders are; default: in hilora's cache ($HILORA_CACHE).
    """

    def __init__(self, pool: Path, root: Path | None = None) -> None:
        self.pool, self.root = pool, (root or cache_dir() / "vllm").absolute()

    def path(self, content: str) -> Path:
        """The folder of an adapter, whether it is there or not."""
        return self.root / content.replace(" ", "-")

    def has(self, content: str) -> bool:
        """Whether it is there."""
        return (self.path(content) / WEIGHTS).exists()

    def ensure(self, parts: Iterable[Part]) -> None:
        """Write the folders of a composition's adapters, where they are not there.

        Raises:
            WireError: an adapter is not in the pool any more, or vLLM cannot serve it.
        """
        for part in parts:
            if not self.has(part.content):
                self._write(part.content)

    def _write(self, content: str) -> None:
        pool, own = PoolFolder.open(self.pool), content.rpartition(" ")[2]
        try:
            factors = (Canonical(pool) if " " in content else pool).factors(content)
        except DamagedError as error:
            raise WireError(
                f"The adapter {own[:12]} is not in the pool at {self.pool} (any more), or its file is damaged. "
                "Route the prompt again."
            ) from error
        for site in factors:
            if site.rsplit(".", 1)[-1] in NOT_GATED:
                raise WireError(
                    f"The adapter {own[:12]} adapts {site}, where vLLM gates nothing. Disable it in the pool, or "
                    "train it without that module."
                )
        base_model = next((entry.base_model for entry in pool.entries if entry.hash == own), "")
        self.root.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=self.root))
        try:
            write_peft(beside, factors, base_model)
            beside.replace(self.path(content))
        except OSError:
            if not self.has(content):  # else another process was faster
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@lru_cache(maxsize=4096)
def number_of(content: str) -> int:
    """vLLM's number for an adapter: by its content, so that all processes agree, and above all that users give."""
    return 1 << 60 | int(hashlib.sha256(content.encode()).hexdigest()[:15], 16)
