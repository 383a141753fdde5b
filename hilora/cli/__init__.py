"""The command line: `hilora`. Every command is a thin layer over the Python API."""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> None:
    """Run a command; what is refused is one line on stderr and exit code 2."""
    from typer import Abort

    from hilora.cli.app import app
    from hilora.cli.usage import Misread, in_one_line
    from hilora.errors import HiloraError

    gc.set_threshold(100_000, 50, 50)  # what imports make stays: looking for garbage in it is a tenth of the start
    try:
        sys.exit(app(prog_name="hilora", standalone_mode=False))
    except Misread as error:
        refused = in_one_line(error)
    except HiloraError as error:
        refused = str(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Abort:
        sys.exit(1)
    if refused:
        print(f"hilora: {refused}", file=sys.stderr)
    sys.exit(2)
