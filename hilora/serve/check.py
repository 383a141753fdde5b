"""Checks one upload, in a process of its own: python -m hilora.serve.check [POOL] < job > verdict.

With a pool it makes itself ready before it reads the job: most of a check is Python and an embedder starting.

The process is nice, has one thread, and bounds on its time and memory; whatever a hostile file does to it, the server
goes on. It looks at everything, makes what routing keeps, asks whom the adapter would take prompts from, and then
writes its files, which nobody reads before the server names them in the pool's manifest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hilora.errors import AdapterError, HiloraError, InputError, PoolError

OWN = "checked"
"""Under this word a verdict tells of an adapter that is good; under REFUSED why it is not, in a word under REASON."""
REFUSED, REASON, OTHER = "refused", "reason", "other"
SLOWLY = 15
"""How nice it is: beside a server that uses all cores it gets a thirtieth of one, and still ends."""
HEADER = 16 << 20
"""Bytes of a weights file's header."""


class CaptureError(InputError):
    """It would take too many of the others' prompts."""


class FullError(PoolError):
    """The disk does not take its files."""


REASONS: dict[type[Exception], str] = {
    CaptureError: "capture",
    FullError: "disk_full",
    InputError: "samples",
    AdapterError: "adapter",
    PoolError: "pool",
    MemoryError: "memory",
}
"""The one word, by what was raised; the first that fits."""


@dataclass(frozen=True)
class Task:
    """One upload to be checked.

    Attributes:
        pool: the pool's folder.
        folder: the upload's files.
        name: what its tenant calls the adapter; `inner`: the pool.
        tenant: whose own it is to be; "" for everybody's.
        any_base: its config may name another base.
        rank, samples, sample_length, capture: as in `limits.Limits`.
        memory: bytes that the check may take; `seconds`: of the processor.
        server: the process that waits for the verdict.
    """

    pool: str
    folder: str
    name: str
    inner: str
    tenant: str
    any_base: bool
    rank: int
    samples: int
    sample_length: int
    capture: float
    memory: int
    seconds: float
    server: int


def main() -> None:
    """Read a task from standard input, write the verdict to standard output."""
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no verdict
    with suppress(OSError, AttributeError):
        os.nice(SLOWLY)
    embed = ready(Path(sys.argv[1])) if len(sys.argv) > 1 else None
    told = sys.stdin.read()
    if not told:  # the server has ended
        return
    task = Task(**json.loads(told))
    _be_small(task)
    found = verdict(task, embed)
    os.write(out, (json.dumps(found) + "\n").encode())


def ready(path: Path) -> Any:
    """The embedder of a pool, and all that a check imports, loaded; None if that fails, which the check will tell."""
    import torch

    from hilora.pool.folder import PoolFolder

    torch.set_num_threads(1)
    for name in ("newcomer", "prepared", "private"):
        import_module(f"hilora.pool.{name}")
    try:
        pool = PoolFolder.open(path)
        embed = pool.embedder.load(pool.path)
        embed(["ready"])
    except HiloraError:
        return None
    return embed


def _be_small(task: Task) -> None:
    import torch

    torch.set_num_threads(1)
    with suppress(ImportError, OSError, ValueError, IndexError):  # not everywhere
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + task.memory, now + task.memory))
        spent = int(time.process_time() + task.seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + 1, spent + 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold texts


def verdict(task: Task, embed: Any = None) -> dict[str, Any]:
    """What is to be said of an upload.

    Args:
        task: the upload.
        embed: the pool's embedder, if it is loaded already.
    """
    try:
        return {OWN: _checked(task, embed)}
    except HiloraError as error:
        return {REFUSED: told(error, task), REASON: word_for(error)}
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            why = f"Checking it takes more than {task.memory} bytes of memory."
            return {REFUSED: why, REASON: REASONS[MemoryError]}
        raise


def word_for(error: Exception) -> str:
    """Why an upload was refused, in one word."""
    return next((word for kind, word in REASONS.items() if isinstance(error, kind)), OTHER)


def told(error: Exception, task: Task) -> str:
    """Why an upload was refused, without a path of the server's."""
    text = " ".join(str(error).split("\n"))
    text = text.replace(f"Adapter folder {task.folder!r}: ", "The upload ")
    return text.replace(f"{task.folder}/", "").replace(task.folder, "the upload").replace(task.pool, "the pool")


def _checked(task: Task, loaded: Any) -> Mapping[str, Any]:
    """The adapter's entry, with its files kept.

    Raises:
        HiloraError: it is not good.
    """
    from hilora.pool.folder import PoolFolder
    from hilora.pool.newcomer import captured, readable
    from hilora.pool.newcomer import told as told_of
    from hilora.pool.peft import WEIGHTS
    from hilora.pool.prepared import prepare
    from hilora.pool.private import read_features
    from hilora.route.features import check_samples
    from hilora.serve.asked import Caller
    from hilora.serve.faults import is_full
    from hilora.serve.parts import FEATURES_FILE
    from hilora.serve.tenants import mask

    folder, pool = Path(task.folder), PoolFolder.open(task.pool)
    check_header(folder / WEIGHTS)
    seen = mask(pool, Caller(task.tenant), None)
    given: Any
    if (folder / FEATURES_FILE).exists():
        some = (seen & pool.enabled).nonzero()[:32, 0].tolist()
        given, embed = read_features(folder / FEATURES_FILE, pool.embedder, readable(pool, some), task.samples), None
        check_samples(given.embeddings, task.name)
    else:
        given = _texts(folder, task)
        embed = pool.embedder.load(pool.path) if loaded is None else loaded
    made = prepare(pool, task.name, folder, given, embed, any_base=task.any_base)
    if made.entry.rank > task.rank:
        raise AdapterError(f"The adapter has rank {made.entry.rank}; at most {task.rank} is taken here.")
    found = captured(pool, made.features, task.inner, seen)
    if found.share > task.capture:
        raise CaptureError(told_of(found, task.capture))
    extra = {"tenant": task.tenant, "called": task.name} if task.tenant else {}
    made = replace(made, entry=replace(made.entry, name=task.inner, extra=extra))
    if task.server not in (os.getpid(), os.getppid()):
        raise InputError("The server has ended.")  # nobody would name these files, nor delete them
    try:
        made.keep_all(pool.path)
    except PoolError as error:
        if is_full(error):
            raise FullError(str(error)) from error
        raise
    return asdict(made.entry)


def check_header(path: Path) -> None:
    """Refuse a weights file whose header is larger than any adapter's, before it is parsed.

    Raises:
        AdapterError: it is, or there is none.
    """
    with path.open("rb") as file:
        start = file.read(8)
    size = int.from_bytes(start, "little")
    if len(start) < 8 or size > min(HEADER, path.stat().st_size - 8):
        raise AdapterError(
            f"{path.name} is no safetensors file: its header would have {size} bytes, of {path.stat().st_size}. "
            "Pickles are not read; save it with safe_serialization=True."
        )


def _texts(folder: Path, task: Task) -> list[str]:
    from hilora.errors import InputError
    from hilora.pool.source import SAMPLES_FILE, read_samples

    texts = read_samples(folder / SAMPLES_FILE)
    if len(texts) > task.samples:
        raise InputError(f"{len(texts)} samples were sent; at most {task.samples} are taken. 20 are enough.")
    longest = max(map(len, texts), default=0)
    if longest > task.sample_length:
        raise InputError(f"A sample has {longest} characters; at most {task.sample_length} are taken.")
    return texts


if __name__ == "__main__":
    main()
