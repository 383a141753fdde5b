"""vLLM's entry point. Without HILORA_POOL in the environment nothing is done, and vLLM stays what it is.

HILORA_POOL             the pool whose adapters compositions may use: a folder, or the name of an installed pool.
HILORA_VLLM_PLACES      adapters of one composition, at most; 8 by default.
"""

from __future__ import annotations

import os

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


def places() -> int:
    """HILORA_VLLM_PLACES.

    Raises:
        InputError: it is no number of adapters.
    """
    given = os.environ.get(PLACES) or str(DEFAULT_PLACES)
    if not given.isdecimal() or not 1 <= int(given) <= 64:
        raise InputError(f"{PLACES} is the number of adapters of a composition, 1 to 64; got {given!r}.")
    return int(given)
