"""The tables of parameters in docs/serving-openai.md, made of what the code accepts.

python -m hilora.serve.openai.page docs/serving-openai.md     writes them anew
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from hilora.serve.openai import parameters
from hilora.serve.openai.parameters import Table
from hilora.serve.openai.requests import ChatRequest, CompletionRequest, Hilora, Strict

TAKEN: dict[str, type[Strict]] = {"chat": ChatRequest, "completion": CompletionRequest, "hilora": Hilora}
"""Tables of what has an effect."""
LACKING: dict[str, Table] = {
    "chat-lacking": parameters.CHAT,
    "completion-lacking": parameters.COMPLETION,
    "message-lacking": parameters.MESSAGE,
}
"""Tables of what has none."""


def taken(model: type[Strict]) -> Iterator[str]:
    """Rows of a request's parameters."""
    yield "| parameter | |"
    yield "|---|---|"
    for name, known in model.model_fields.items():
        yield f"| `{name}` | {known.description or ''} |"


def lacking(table: Table) -> Iterator[str]:
    """Rows of parameters without effect."""
    yield "| parameter | accepted | |"
    yield "|---|---|---|"
    for name, each in table.items():
        values = ", ".join(f"`{json.dumps(value)}`" for value in (*(each.neutral or ()), None))
        yield f"| `{name}` | {'anything' if each.neutral is None else values} | {each.why} |"


def tables() -> dict[str, str]:
    """Name -> table."""
    found = {name: taken(model) for name, model in TAKEN.items()}
    found |= {name: lacking(table) for name, table in LACKING.items()}
    return {name: "\n".join(rows) for name, rows in found.items()}


def filled(page: str) -> str:
    """The page with its tables as they are now; each stands between two comments with its name."""
    for name, table in tables().items():
        head, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        page = f"{head}{begin}\n{table}\n\n{end}{tail}"
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text()))
