"""The command line: `hilora`. Every command is a thin layer over the Python API."""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> None:
    """Run a command; what hilora refuses is one line on stderr and exit code 2."""
    from hilora.cli.app import app
    from hilora.errors import HiloraError

    gc.set_threshold(100_000, 50, 50)  # what imports make stays: looking for garbage in it is a tenth of the start
    try:
        app()
    except HiloraError as error:
        print(f"hilora: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
