"""RAMoLE's Fig. 8: prompts that need what two adapters know. Writes showcase.md.

    python reproduce/ramole/showcase.py --pool pools/flan-mini

Each prompt is answered by the base model, by either adapter alone, by both with equal weights, by methods that route
among these two (hilora-plus, and ramole once it is trained), and by hilora-plus with the whole pool. The prompts were
written for this; whether an answer is right is for the reader to see.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from speed import routers_of

from hilora import HiLoRA, Pool
from hilora.base.models import load_base
from hilora.evaluate.tables import markdown_table


@dataclass(frozen=True)
class Case:
    """A prompt and the two adapters that know its halves."""

    title: str
    prompt: str
    adapters: tuple[str, str]


CASES = (
    Case(
        "German to French, by German to English and English to French",
        "Translate this German sentence to French:\n\nEin Hund läuft über die Wiese.\n\nFrench:",
        ("multi30k_deen", "wmt14_enfr"),
    ),
    Case(
        "Sentiment of a German review, by sentiment and German to English",
        "Is the sentiment of this movie review positive or negative?\n\n"
        "Ein wunderbarer Film mit großartigen Schauspielern.\n\nOPTIONS:\n- negative\n- positive",
        ("sst2", "multi30k_deen"),
    ),
    Case(
        "Entailment across languages, by inference and French to English",
        "Premise: Un homme joue de la guitare dans la rue.\n\nHypothesis: A man is making music.\n\n"
        "Is the hypothesis entailed by the premise?\nOPTIONS:\n- yes\n- it is not possible to tell\n- no",
        ("snli", "multi30k_fren"),
    ),
    Case(
        "A sentence with given words, its capital letters put back",
        "Write a sentence that contains these words, with proper capital letters: paris, train, anna, monday",
        ("common_gen", "true_case"),
    ),
)


def answers(case: Case, routers: dict[str, HiLoRA]) -> list[tuple[str, str, str]]:
    """(who, answer, adapters with their weights) of everyone who is asked."""
    both = list(case.adapters)
    asked: list[tuple[str, str, list[str] | None]] = [
        ("base", "base", None),
        *((f"{name} alone", "selection", [name]) for name in both),
        ("both, equal weights", "mixture", both),
    ]
    asked += [(f"{name}, of these two", name, both) for name in ("ramole", "hilora-plus") if name in routers]
    asked += [("hilora-plus, of all", "hilora-plus", None)]
    found = []
    for who, method, allow in asked:
        (answer,) = routers[method].generate(case.prompt, max_new_tokens=32, allow=allow)
        used = ", ".join(f"{choice.name} {choice.weight:.2f}" for choice in answer.choices)
        found.append((who, " ".join(answer.text.split()).replace("|", "/"), used))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", type=Path, default=Path("pools/flan-mini"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("showcase.md"))
    args = parser.parse_args()
    pool = Pool.open(args.pool)
    model, tokenizer = load_base(pool.base.name, dtype="bf16")
    embedder = pool.embedder.load(pool.path)
    methods = ("base", "selection", "mixture", "hilora-plus", "ramole")
    routers = routers_of(pool, methods, model, tokenizer, embedder)
    text = ["# Prompts that need two adapters (RAMoLE Fig. 8)\n\nMade by `python reproduce/ramole/showcase.py`.\n"]
    for case in CASES:
        quoted = "\n".join(f"> {line}".rstrip() for line in case.prompt.splitlines())
        table = markdown_table(("who", "answer", "adapters"), answers(case, routers))
        text.append(f"## {case.title}\n\n{quoted}\n\n{table}\n")
    args.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
