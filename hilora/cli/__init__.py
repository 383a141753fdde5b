"""The command line: `hilora`. Every command is a thin layer over the Python API."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
TRACEBACK = "HILORA_TRACEBACK"
"""Set to 1, this variable of the environment shows where an error came from."""


def main() -> None:
    """Run a command; what is refused or cannot be done is one line on stderr and exit code 2 (Ctrl-C: 130)."""
    gc.set_threshold(100_000, 50, 50)  # what imports make stays: looking for garbage in it is a tenth of the start
    try:
        from hilora.cli.app import app

        try:
            code = app(prog_name="hilora", standalone_mode=False)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk is known here; at the end of Python it would be a traceback
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = _told(error)
        if code is None:
            raise
    sys.exit(code)


def _told(error: Exception) -> int | None:
    """Say what went wrong; the exit code, or None where it is not for a user to mend."""
    from typer import Abort

    from hilora.cli.faults import interrupted, tell
    from hilora.cli.usage import Misread, in_one_line

    if interrupted(error):
        return 130
    _let_go()
    if isinstance(error, BrokenPipeError | Abort):  # whoever read has read enough, or said no
        return 1
    line = in_one_line(error) if isinstance(error, Misread) else tell(error)
    if line is None:
        return None
    if not line:  # the help has been shown instead
        return 2
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        import traceback

        traceback.print_exc()
    with suppress(OSError):
        print(f"hilora: {line}", file=sys.stderr)
    return 2


def _let_go() -> None:
    """Drop what standard output does not take, so that Python does not try again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
