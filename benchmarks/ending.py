"""How soon an answer ends that nobody wants any more: tokens that are still generated, and seconds until all is over.

    python benchmarks/ending.py --json benchmarks/ending.jsonl --alone

break               in Python: a few pieces of `HiLoRA.stream`, then its generator is closed
SIGINT, stream      Ctrl-C while `hilora generate --stream` prints
SIGINT, batch       Ctrl-C while `hilora generate` answers, before anything is printed
pipe, stream        `hilora generate --stream | head -c 1`: whoever reads has gone
pipe, lines         `hilora generate --json --batch-size 1 | head -1`, with prompts left to answer

Tokens are the model's steps, counted by a hook; they do not depend on what else the machine does. Seconds do: without
--alone, which says that nothing else was running, a row calls them upper bounds. Commands run in processes of their
own, and their seconds hold the end of the process.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lines import Line, write

from hilora.bench.rounds import spread
from hilora.engine.generate import HiLoRA
from hilora.evaluate.setup import setup

PROMPT = "Write a long story about a lighthouse keeper, his daughter, and the ship that came back."
MOST = 400
"""Tokens that an answer would have."""
BEGUN = 60
"""Steps after which an answer is well under way: probing the model and reading the prompt are among them."""
PATIENCE = 600
"""Seconds until a command counts as stuck."""
LONG = ["--max-new-tokens", str(MOST), "-g", f"min_new_tokens={MOST}"]
SHORT = ["--max-new-tokens", "16", "-g", "min_new_tokens=16"]
COMMANDS: dict[str, list[str]] = {
    "SIGINT, stream": ["generate", PROMPT, "--stream", *LONG],
    "SIGINT, batch": ["generate", PROMPT, *LONG],
    "pipe, stream": ["generate", PROMPT, "--stream", *LONG],
    "pipe, lines": [
        "generate",
        *[f"{PROMPT} Chapter {n}." for n in range(40)],
        "--json",
        "--batch-size",
        "1",
        *SHORT,
    ],
}
CHILD = [sys.executable, __file__, "--child"]


def count_steps(model: Any, on_step: Callable[[], None]) -> Any:
    """Call back at each step of a model; returns the handle that ends it."""

    def hook(module: Any, inputs: Any) -> None:  # what a hook returns would be taken for inputs
        on_step()

    return model.register_forward_pre_hook(hook)


def leave_early(router: HiLoRA, pieces: int = 5) -> tuple[int, float]:
    """Steps and seconds after a stream is left."""
    steps = 0

    def on_step() -> None:
        nonlocal steps
        steps += 1

    handle = count_steps(router.model, on_step)
    try:
        stream = router.stream(PROMPT, max_new_tokens=MOST, min_new_tokens=MOST)
        for _ in range(pieces):
            next(stream)
        before, began = steps, time.perf_counter()
        stream.close()
        return steps - before, time.perf_counter() - began
    finally:
        handle.remove()


def stop_command(case: str, arguments: Sequence[str]) -> tuple[int, float, int]:
    """Steps and seconds after a command is told to stop, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "steps"
        log.write_bytes(b"")
        child = subprocess.Popen(
            [*CHILD, str(log), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        try:
            if case.startswith("pipe"):
                child.stdout.readline() if case == "pipe, lines" else child.stdout.read(1)
            limit = time.perf_counter() + PATIENCE
            while case.startswith("SIGINT") and log.stat().st_size < BEGUN and child.poll() is None:
                time.sleep(0.005)
                if time.perf_counter() > limit:
                    raise SystemExit(f"{case}: the command has not begun to answer after {PATIENCE} s.")
            if child.poll() is not None:
                raise SystemExit(
                    f"{case}: the command ended by itself with {child.returncode}, before it was told to."
                )
            before, began = log.stat().st_size, time.perf_counter()
            if case.startswith("SIGINT"):
                child.send_signal(signal.SIGINT)
                child.stdout.read()
            else:
                child.stdout.close()
            code = child.wait(PATIENCE)
            return log.stat().st_size - before, time.perf_counter() - began, code
        finally:
            child.kill()
            child.stdout.close()
            child.wait()


def child(log: str, arguments: Sequence[str]) -> None:
    """Be `hilora`, and append a byte to a file at each step of the model."""
    from hilora.cli import main as hilora

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this
    steps = os.open(log, os.O_WRONLY | os.O_APPEND)
    own = HiLoRA.__init__

    def begin(self: HiLoRA, model: Any, *args: Any, **options: Any) -> None:
        own(self, model, *args, **options)
        count_steps(model, lambda: os.write(steps, b"."))

    HiLoRA.__init__ = begin  # type: ignore[method-assign]
    sys.argv = ["hilora", *arguments]
    hilora()


def measure(pool: str, runs: int, alone: bool) -> Iterator[Line]:
    """All lines of results."""
    are = "measured with nothing else running" if alone else "upper bounds: other programs may have been running"
    yield setup("benchmarks/ending.py", pool=Path(pool).name, runs=runs, most=MOST, load=round(os.getloadavg()[0], 2))
    router = HiLoRA.from_pretrained(pool=pool)
    leave_early(router)  # what is made once is made
    found = [leave_early(router) for _ in range(runs)]
    yield line("break", found, are)
    for case, arguments in COMMANDS.items():
        ended = [stop_command(case, [*arguments, "--pool", pool]) for _ in range(runs)]
        yield line(case, [(steps, seconds) for steps, seconds, _ in ended], are) | {
            "exit": sorted({code for *_, code in ended})
        }


def line(case: str, found: Sequence[tuple[int, float]], are: str) -> Line:
    """A row: tokens of each run, median and range of the seconds."""
    return {
        "case": case,
        "tokens_after": [tokens for tokens, _ in found],
        "seconds": spread([seconds for _, seconds in found], 3),
        "seconds_are": are,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default="pools/flan-mini")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="nothing else runs on the machine")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    write(args.json, measure(args.pool, args.runs, args.alone))


if __name__ == "__main__":
    if sys.argv[1:2] == CHILD[2:]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
