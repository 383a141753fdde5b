"""A chat: each turn is routed anew, the answer is printed as it comes, and earlier turns are remembered.

python examples/chat.py [POOL]          # an empty line or Ctrl-D ends it
"""

import sys
from collections.abc import Generator
from pathlib import Path

from hilora import Completion, HiLoRA

POOL = Path(__file__).parents[1] / "pools" / "flan-mini"


def show(pieces: Generator[str, None, Completion]) -> Completion:
    """Print an answer piece by piece; gives the whole of it, with its reasons."""
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as end:
            print()
            return end.value


def main(pool: str | Path = POOL) -> None:
    """Talk until nothing is said."""
    router = HiLoRA.from_pretrained(pool=pool)
    messages: list[dict[str, str]] = []
    while asked := read():
        messages.append({"role": "user", "content": asked})
        answer = show(router.stream(messages, max_new_tokens=64))
        messages.append({"role": "assistant", "content": answer.text})
        print(f"  ({', '.join(answer.adapters) or 'the base model alone'})")


def read() -> str:
    """What the user says next; "" at the end."""
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main(*sys.argv[1:2])
