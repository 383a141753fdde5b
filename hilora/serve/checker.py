"""Runs checks of uploads (`check`), one at a time, each in a process of its own that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hilora
from hilora.pool.manifest import read_entry
from hilora.pool.view import Entry
from hilora.serve.check import OTHER, OWN, REASON, REASONS, REFUSED, Task
from hilora.serve.journal import LOG

COMMAND = (sys.executable, "-P", "-m", "hilora.serve.check")
MOST_SAID = 1 << 20
"""Bytes of a verdict."""


class RefusedError(Exception):
    """An upload is not good.

    Args:
        message: says why, to whoever sent it.
        code: says it in one word, of a few.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Checker:
    """Checks uploads.

    Args:
        command: the process.
        pool: for which the next process is held ready; default: each starts when it is needed.

    Attributes:
        ended: whether it takes no more.
    """

    def __init__(self, command: Sequence[str] = COMMAND, pool: Path | None = None) -> None:
        self.command, self.is_ready = [*command, *([] if pool is None else [str(pool)])], pool is not None
        self._next: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self.ended = False

    def __call__(self, task: Task) -> Entry:
        """What the manifest is to say of an upload; its files are kept.

        Raises:
            RefusedError: it is not good, or its check did not end.
        """
        with self._lock:
            if self.ended:
                raise RefusedError("interrupted", "interrupted")
            process, self._next = self._next, None
            if process is None or process.poll() is not None:
                process = self._begun()
            self._process = process
        try:
            said, _ = process.communicate(json.dumps(asdict(task)).encode(), timeout=task.seconds)
        except subprocess.TimeoutExpired as error:
            raise RefusedError(f"Its check did not end within {task.seconds:g} seconds.", "time") from error
        finally:
            _kill(process)
            with self._lock:
                self._process = None
            self.prepare()
        return entry_of(said, process.returncode, task)

    def prepare(self) -> None:
        """Hold the next process ready, if that is wanted."""
        with self._lock:
            if self.is_ready and not self.ended and self._next is None:
                self._next = self._begun()

    def _begun(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            process_group=0,  # to be killed as one; in a session of its own it would not be nice to this one
        )

    def close(self) -> None:
        """End the check that runs, and run no others."""
        with self._lock:
            self.ended = True
            for process in filter(None, (self._process, self._next)):
                _kill(process)


def entry_of(said: bytes, code: int | None, task: Task) -> Entry:
    """What a check said.

    Args:
        said: the verdict, as it was written.
        code: status with which the process ended.
        task: that it was given.

    Raises:
        RefusedError: that the upload is not good, or nothing that can be understood.
    """
    verdict: Any = None
    with suppress(ValueError, RecursionError):
        verdict = json.loads(said[:MOST_SAID])
    if code or not isinstance(verdict, dict) or not verdict.keys() & {OWN, REFUSED}:
        LOG.error("The check of an upload ended with status %s.", code)
        killed = (code or 0) < 0
        why = "it took too much time or memory" if killed else "it failed"
        raise RefusedError(
            f"It could not be checked: {why}. Check that its files are whole.", "killed" if killed else "broken"
        )
    if REFUSED in verdict:
        word = str(verdict.get(REASON))
        raise RefusedError(str(verdict[REFUSED]), word if word in REASONS.values() else OTHER)
    found = verdict[OWN]
    entry = read_entry({key: value for key, value in found.items() if key != "extra"} | found["extra"])
    if entry.name != task.inner or entry.extra.get("tenant", "") != task.tenant:
        raise RefusedError("It could not be checked: it failed.", "broken")
    return entry


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started; one that has ended is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()


def _environment() -> dict[str, str]:
    """One thread, no network, no device, no secrets, and this very hilora."""
    kept = {key: value for key, value in os.environ.items() if "TOKEN" not in key}
    home = str(Path(hilora.__file__).parent.parent)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH", "")])])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {
        **kept,
        **threads,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
