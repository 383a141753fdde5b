"""What of a prompt to route on: which turns of a chat, and which part of a text that is too long for the embedder.

    python reproduce/selection/turns.py --data DATA

DATA holds flan_mini/val, of which the tasks of pools/flan-mini are used. No base model runs. What is chosen is chosen
on the first halves of val, with one half of the follow-ups; the tables are of the second halves, with the other. A
row holds a prompt's id, the place of its own adapter, and whether the first is of its cluster; no text. Rows go to
turns.json beside this file, tables to turns.md and the screen. Without --data the tables are made again.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from pages import numbers_main, show
from turns_tables import HALVES, KEPT, METHODS, WORDS_OF_ALL, report, written

from hilora import Pool
from hilora.base.asked import SPARE, ends, shorten
from hilora.base.embed import Embedder, Remembering
from hilora.base.encoders import Span
from hilora.base.turns import size_of
from hilora.evaluate.routing import SCORERS, STEP, look_at, own_scorer
from hilora.evaluate.rows import Row, choose_rows, cluster_of, load_rows
from hilora.evaluate.setup import setup
from hilora.evaluate.statistics import task_seed
from hilora.jsonl import entry_lines
from hilora.route.experts import Experts
from hilora.route.features import Features, hash_terms

HERE = Path(__file__).parent
POOL = Path("pools/flan-mini")
PROMPTS = 120
"""Of each half, put behind or before a document."""
CHATS = 400
"""Of each half."""
WORDS = 400
"""A document has at least so many."""
PROSE = ("common_gen", "dialogsum", "fix_punct", "multi30k_deen", "samsum", "true_case", "wmt16_translate_deen")
"""Tasks whose answers are plain English sentences, of which documents are made."""
FOLLOW_UPS = (
    ("yes, go on", "and the second one?"),
    ("shorter please", "why?"),
    ("Can you say that again in simpler words?", "no, try again"),
    ("Thanks! Now do it once more.", "are you sure?"),
    ("what about the other one?", "more"),
    ("ok", "please explain"),
    ("continue", "Give me another one."),
    ("make it longer", "I don't think that is right."),
    ("How do you know?", "hm, what else?"),
    ("the same, but in one sentence", "Could you check that once more, please?"),
    ("and now?", "go on"),
    ("that's wrong", "Which of them is better?"),
    (
        "I meant the one before that, not the one that you have just answered.",
        "Can you explain it again, for somebody who has never heard of any of this?",
    ),
)
"""The first of each pair for the first half, the second for the second."""

Rows = dict[str, Any]
"""`<half>/<case>/<id>` -> what was found of a prompt."""
Marks = list[str]
"""Of each prompt, as `turns_tables.written`."""


class Ranking:
    """How methods rank the adapters of the pool for texts."""

    def __init__(self, pool: Pool, embedder: Remembering, cluster: Mapping[str, str]) -> None:
        samples = pool.samples()
        self.scorers = {
            "hilora": own_scorer(samples, pool.ridge).score,
            "hilora-plus": Experts(pool.calibration.weights).fit(samples).score,
            "mixture": SCORERS["cosine"](samples).score,
        }
        self.names, self.embedder = pool.names, embedder
        kinds = sorted(set(cluster.values()))
        self.clusters = torch.tensor([kinds.index(cluster[name]) for name in pool.names])

    def features(self, texts: Sequence[str]) -> Features:
        """Texts as routing sees them."""
        new = list(dict.fromkeys(texts))
        for start in range(0, len(new), STEP):
            self.embedder(new[start : start + STEP])
            show(min(start + STEP, len(new)), len(new))
        return look_at(list(texts), self.embedder, True)

    def scores(self, texts: Features) -> Tensor:
        """(method, text, adapter)."""
        return torch.stack([self.scorers[method](texts) for method in METHODS])

    def marks(self, scores: Tensor, own: Sequence[str]) -> Marks:
        """Where the own adapters of prompts ended up."""
        place = torch.tensor([self.names.index(name) for name in own])
        order = scores.sort(dim=2, descending=True, stable=True).indices
        ranks = (order == place[:, None]).int().argmax(2)  # (method, text)
        related = self.clusters[order[:, :, 0]] == self.clusters[place]
        return [written(*marks) for marks in zip(ranks.T.tolist(), related.T.tolist(), strict=True)]


def measure(data: Path, embedder_name: str) -> dict[str, Any]:
    """All rows."""
    pool, embedder = Pool.open(POOL), Remembering(Embedder(embedder_name))
    rows = [row for row in load_rows(data / "flan_mini" / "val") if row.task in pool.names]
    ranking = Ranking(pool, embedder, cluster_of(rows))
    long: Rows = {}
    chats: Rows = {}
    for number, half in enumerate(HALVES):
        part = choose_rows(rows, part=half)
        for case, texts in long_texts(part, half, embedder).items():
            print(f"{half} half, {case}: {len(texts)} prompts", file=sys.stderr, flush=True)
            found = long_marks(ranking, [text for _, text in texts], [row.task for row, _ in texts])
            for i, (row, _) in enumerate(texts):
                long[f"{half}/{case}/{row.id}"] = {way: marks[i] for way, marks in found.items()}
        print(f"{half} half, chats", file=sys.stderr, flush=True)
        chats |= chat_rows(ranking, half, part, [pair[number] for pair in FOLLOW_UPS])
    header = setup(
        "reproduce/selection/turns.py",
        embedder=embedder_name,
        adapters=len(pool),
        methods=METHODS,
        room=embedder.room,
        document=WORDS,
        follow_ups=len(FOLLOW_UPS),
    )
    return {"setup": header, "long": long, "chats": chats}


def long_texts(rows: Sequence[Row], half: str, embedder: Embedder) -> dict[str, list[tuple[Row, str]]]:
    """Case -> prompts with texts that are too long: some are, others get a document put before or behind them."""
    random = np.random.default_rng(task_seed(0, f"{half} long"))
    fits = {row.id: shorten(row.inputs, embedder)[1] == 0 for row in rows}
    drawn = [rows[i] for i in random.permutation(len(rows)) if fits[rows[i].id]][:PROMPTS]
    prose = [(row.task, row.targets) for row in rows if row.task in PROSE]
    asked = [(row.task, row.inputs) for row in rows]

    def document(own: str, parts: Sequence[tuple[str, str]]) -> str:
        text = ""
        while size_of(text).words < WORDS:
            task, part = parts[random.integers(len(parts))]
            text += "" if task == own else f"{part}\n"
        return text

    return {
        "as it is": [(row, row.inputs) for row in rows if not fits[row.id]],
        "prose before": [(row, f"{document(row.task, prose)}\n{row.inputs}") for row in drawn],
        "prose behind": [(row, f"{row.inputs}\n\n{document(row.task, prose)}") for row in drawn],
        "prompts before": [(row, f"{document(row.task, asked)}\n{row.inputs}") for row in drawn],
    }


def long_marks(ranking: Ranking, texts: Sequence[str], own: Sequence[str]) -> dict[str, Marks]:
    """Way to read texts that are too long -> where their own adapters ended up."""
    spans_of, room = ranking.embedder.spans, int(ranking.embedder.room)
    assert spans_of is not None
    spans = [spans_of(text) for text in texts]
    few = room - SPARE
    terms = hash_terms(texts)
    scores: dict[str, Tensor] = {}
    for way, (head, tail) in KEPT.items():
        counts = int(head * few), int(tail * few)
        cut = [ends(text, of, *counts) for text, of in zip(texts, spans, strict=True)]
        embeddings = ranking.features(cut if tail else texts).embeddings  # the embedder itself reads first tokens
        scores[way] = ranking.scores(Features(embeddings, hash_terms(cut)))
        if way in WORDS_OF_ALL:
            scores[WORDS_OF_ALL[way]] = ranking.scores(Features(embeddings, terms))
    parts = [windows(text, of, few) for text, of in zip(texts, spans, strict=True)]
    text = torch.tensor([i for i, some in enumerate(parts) for _ in some])
    seen = ranking.features([part for some in parts for part in some])
    summed = torch.zeros(len(texts), seen.embeddings.shape[1]).index_add_(0, text, seen.embeddings)
    scores["mean"] = ranking.scores(Features(torch.nn.functional.normalize(summed, dim=1), terms))
    each = ranking.scores(seen)
    scores["best"] = torch.stack([each[:, text == i].amax(1) for i in range(len(texts))], dim=1)
    return {way: ranking.marks(found, own) for way, found in scores.items()}


def windows(text: str, spans: Sequence[Span], longest: int) -> list[str]:
    """A text in as few parts of about one length as there can be, none longer than so many tokens."""
    edges = np.linspace(0, len(spans), -(-len(spans) // longest) + 1).astype(int).tolist()
    return [text[spans[start][0] : spans[end - 1][1]] for start, end in pairwise(edges)]


def chat_rows(ranking: Ranking, half: str, rows: Sequence[Row], follow_ups: Sequence[str]) -> Rows:
    """Chats of test prompts and follow-ups: the ranks when the last one, two or three user messages are routed on."""
    random = np.random.default_rng(task_seed(0, f"{half} chats"))
    drawn = [rows[i] for i in random.permutation(len(rows))[:CHATS]]
    chats: list[tuple[str, Row, list[str]]] = []
    for row in drawn:
        other = next(each for i in random.permutation(len(rows)) if (each := rows[i]).task != row.task)
        first, second = (follow_ups[i] for i in random.permutation(len(follow_ups))[:2])
        asked = row.inputs
        chats += [
            ("follow-up", row, [asked, first]),
            ("two follow-ups", row, [asked, first, second]),
            ("another task, then a follow-up", row, [other.inputs, asked, first]),
            ("another task", row, [other.inputs, asked]),
        ]
    found: Rows = {}
    for case, row, turns in chats:
        found[f"{half}/{case}/{row.id}"] = {"sizes": [size_of(turn) for turn in turns], "last": []}
    for count in (1, 2, 3):
        some = [(key, row, turns) for key, (_, row, turns) in zip(found, chats, strict=True) if len(turns) >= count]
        texts = [shorten("\n".join(turns[-count:]), ranking.embedder)[0] for _, _, turns in some]
        marks = ranking.marks(ranking.scores(ranking.features(texts)), [row.task for _, row, _ in some])
        for (key, _, _), mark in zip(some, marks, strict=True):
            found[key]["last"].append(mark)
    return found


def main() -> None:
    numbers_main(__doc__, HERE / "turns", measure, report, partial(entry_lines, depth=2))


if __name__ == "__main__":
    main()
