"""`python -m hilora ...` with a clock that can be set: on SIGUSR1 it goes by as many seconds as CLOCK's file says.

Called as: shifted.py PYTHON -m hilora ARGUMENTS. The system's clock, and times of files, stay as they are.
"""

from __future__ import annotations

import datetime
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

CLOCK = "SOAK_CLOCK"
"""Names the file."""
real, real_ns, shift = time.time, time.time_ns, [0.0]


class Shifted(datetime.datetime):
    """Times by the clock that is set."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """By that clock."""
        return datetime.datetime.fromtimestamp(real() + shift[0], tz)


def change(*_: Any) -> None:
    shift[0] = float(Path(os.environ[CLOCK]).read_text())


if __name__ == "__main__":
    change()
    signal.signal(signal.SIGUSR1, change)
    time.time = lambda: real() + shift[0]
    time.time_ns = lambda: real_ns() + int(shift[0] * 1e9)
    whole, datetime.datetime = datetime.datetime, Shifted  # type: ignore[misc]
    Shifted.fromtimestamp = whole.fromtimestamp  # type: ignore[method-assign]
    sys.argv = ["hilora", *sys.argv[4:]]
    runpy.run_module("hilora", run_name="__main__")
