"""Routing alone, in front of another server: hilora names the adapter, an OpenAI-compatible server answers with it.

    hilora pool export arithmetic adapters/arithmetic --pool pools/flan-mini         # PEFT folders for that server
    vllm serve BASE --enable-lora --lora-modules arithmetic=adapters/arithmetic ...  # or any that takes such names
    python examples/route_in_front.py http://localhost:8000 BASE "What is 46 plus 27?"

No base model is loaded here: the embedder and the pool's statistics are all that routing needs.
"""

import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from hilora import Planner, Pool, get_method

POOL = Path(__file__).parents[1] / "pools" / "flan-mini"


def choose(planner: Planner, prompts: list[str], base: str) -> list[str]:
    """The model that each prompt is to be sent to: its best adapter, or the base where none knows such prompts."""
    routed = planner.route(prompts)
    return [choices[0].name if choices else base for choices in planner.explain(routed)]


def ask(server: str, model: str, prompt: str) -> str:
    """The answer of the server's model of that name."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64}
    request = Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def main(server: str, base: str, *prompts: str) -> None:
    """Route prompts, and have each answered."""
    # Such a server takes one adapter a request, so k=1; prompts that are unseen go to the base model.
    planner = Planner(Pool.open(POOL), get_method("hilora-plus", k=1, fallback="base"))
    for prompt, model in zip(prompts, choose(planner, list(prompts), base), strict=True):
        print(f"{prompt} -> {ask(server, model, prompt)}   by {model}")


if __name__ == "__main__":
    main(*sys.argv[1:])
