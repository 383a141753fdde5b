"""vLLM's entry points. Without HILORA_POOL in the environment nothing is done, and vLLM stays what it is.

HILORA_POOL         the pool whose adapters compositions may use: a folder, or the name of an installed pool.
HILORA_VLLM_PLACES  adapters of one composition, at most; 8 by default.
HILORA_METHODS      methods that requests to the API server may name, separated by commas, the default first.
HILORA_CACHE        where adapters are laid ready for vLLM, in vllm/; all of its processes read it.
"""

from __future__ import annotations

import os
from typing import Any

from hilora.errors import InputError

POOL, PLACES = "HILORA_POOL", "HILORA_VLLM_PLACES"
DEFAULT_PLACES = 8


def register() -> None:
    """Hook vLLM, once in each of its processes; again is no harm.

    Raises:
        MismatchError: the installed vLLM is another release than this is written for.
        InputError, PoolError: a setting makes no sense, or there is no such pool.
    """
    if not os.environ.get(POOL):
        return
    from hilora.pool.source import find_pool
    from hilora.vllm.folders import Folders
    from hilora.vllm.front import Front
    from hilora.vllm.private.hooks import install
    from hilora.vllm.private.names import verify

    verify()
    install(Front(Folders(find_pool(os.environ[POOL])), places()))


def door() -> Any:
    """vLLM's endpoint plugin, which it loads where VLLM_PLUGINS names it."""
    if not os.environ.get(POOL):
        return Shut()
    from hilora.pool.source import find_pool
    from hilora.vllm.door import Plugin
    from hilora.vllm.folders import Folders

    return Plugin(Folders(find_pool(os.environ[POOL])), places())


class Shut:
    """The endpoint plugin where no pool is named: it does nothing."""

    name, required_tasks = "hilora", None

    def attach_router(self, app: Any) -> None:
        """Leave the application as it is."""

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Leave its state as it is."""


def places() -> int:
    """HILORA_VLLM_PLACES.

    Raises:
        InputError: it is no number of adapters.
    """
    given = os.environ.get(PLACES) or str(DEFAULT_PLACES)
    if not given.isdecimal() or not 1 <= int(given) <= 64:
        raise InputError(f"{PLACES} is the number of adapters of a composition, 1 to 64; got {given!r}.")
    return int(given)
