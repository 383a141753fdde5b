"""An `Explanation` as one HTML page: no scripts, nothing from the net, light or dark as the reader's system is.

Every text that comes from outside (prompt, answer, tokens, adapters' names, notes) is escaped, and the page forbids
itself scripts and connections, so that a prompt cannot do more than be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from string import Template

import torch

from hilora.analyse.activation import Activation
from hilora.analyse.explain import Explanation
from hilora.types import Choice

HUES = ("0, 114, 178", "213, 94, 0", "0, 158, 115", "204, 121, 167", "86, 180, 233", "230, 159, 0", "130, 130, 130")
"""One for each adapter of an answer, as red, green, blue; the last one for all that come after."""
FAINTEST, STRONGEST = 0.06, 0.5
CODE = re.compile(r"`([^`]+)`")
"""How summaries of methods mark the names of options."""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Why these adapters?</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #57606a; --page: #ffffff; --box: #f4f6f8; --line: #d0d7de;
  --bar: #0072b2; --good: #0b6b3a; --new: #9a4a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9aa5b1; --page: #0f1318; --box: #1a2028;
  --line: #343c46; --bar: #56b4e9; --good: #57d39b; --new: #f0a35a; } }
body { margin: 0 auto; max-width: 54rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } .dim { color: var(--dim); }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; margin: .4rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; max-height: 24rem; overflow: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--dim); font-size: .85rem; vertical-align: bottom; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: middle;
  overflow-wrap: break-word; }
.n, .by { text-align: right; } td.n { white-space: nowrap; } td.bar { width: 30%; min-width: 6rem; }
.bar div { background: var(--bar); height: .8rem; border-radius: 2px; min-width: 1px; }
.seen { color: var(--good); font-weight: 600; } .unseen { color: var(--new); font-weight: 600; }
@media (max-width: 40rem) { body { padding: 1rem; } .bar { display: none; }
  tr { display: flex; flex-wrap: wrap; align-items: end; border-bottom: 1px solid var(--line); padding: .2rem 0; }
  th, td { flex: 1 1 0; min-width: 0; border: 0; padding: .1rem .4rem .1rem 0; } th { font-size: .75rem; }
  th:first-child, td:first-child { flex-basis: 100%; } td:first-child { font-weight: 600; } }
.tokens { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; margin: .4rem 0;
  white-space: pre-wrap; line-height: 1.9; max-height: 30rem; overflow: auto; }
.tokens span { border-radius: 3px; padding: .1rem 0; }
.key { display: inline-block; max-width: 100%; padding: 0 .5rem; border-radius: 3px; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; color: var(--dim); }
</style>
</head>
<body>
<h1>Why these adapters?</h1>
<p class="dim">Method $method, a pool of $num_adapters adapters. $summary</p>
$body
<h2>Words</h2>
<dl>
$words
</dl>
</body>
</html>
""")

WORDS = {
    "adapter": "a LoRA: a small set of changes to the base model's layers, trained for one task.",
    "pool": "the adapters that may be chosen from.",
    "samples": "a few texts of the kind that an adapter was trained on. Prompts are compared with them.",
    "weight": "how the chosen adapters share the work: all weights of a prompt add up to 100 %.",
    "ROC": "rank-one component, one of the directions that an adapter consists of. An adapter of rank 8 has 8 at "
    "each layer that it changes; each token of prompt and answer uses some of them there.",
    "seen or unseen": "whether the prompt looks like what a chosen adapter was trained on. It says that the kind of "
    "prompt is known, not that the answer is right.",
    "token": "a piece of text that the model reads or writes at once: a word, or a part of one.",
}

LEAD = "how far the best adapter's evidence is above the mean of all adapters', as a logarithm: 1 more is 2.7 times."


def render(found: Explanation) -> str:
    """The page."""
    parts = ["<h2>Prompt</h2>", f"<pre>{escape(found.prompt)}</pre>", _verdict(found)]
    if found.note:
        parts.append(f"<p>{escape(found.note)}</p>")
    if found.choices:
        parts += ["<h2>Chosen</h2>", _chosen(found)]
    if found.score is not None and found.choices:
        parts += ["<h2>Not chosen</h2>", _runners_up(found)]
    if found.answer is not None:
        parts += ["<h2>Answer</h2>", f"<pre>{escape(found.answer.strip() or '(empty)')}</pre>"]
    if found.activation is not None:
        parts += ["<h2>Token by token</h2>", _tokens(found.activation)]
    words = dict(WORDS)
    if found.lead is not None:
        words = {"lead": LEAD, **words}
    if found.score is not None:
        words = {f"score: {found.score.name}": found.score.meaning, **words}
    return PAGE.substitute(
        method=escape(found.method),
        summary=CODE.sub(r"<code>\1</code>", escape(found.summary)),
        num_adapters=found.num_adapters,
        body="\n".join(parts),
        words="\n".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in words.items()),
    )


def _verdict(found: Explanation) -> str:
    if not found.choices:
        return "<p>No adapter was chosen: the base model answers alone.</p>"
    if found.seen is None:
        who = "This method does not say" if found.lead is None else "The pool has too few samples to say"
        return f'<p class="dim">{who} whether the prompt is of a kind that an adapter knows.</p>'
    bound = ""
    if found.seen_above is not None:
        said = "a score" if found.lead is None else f"its lead over the other adapters is {found.lead:.2f};"
        bound = f" ({said} above {found.seen_above:.2f} counts as seen)"
    if found.seen:
        return f'<p><span class="seen">Seen.</span> The prompt looks like the samples of a chosen adapter{bound}.</p>'
    return (
        '<p><span class="unseen">Unseen.</span> The prompt does not look like the samples of any adapter'
        f"{bound}; those that come nearest were chosen.</p>"
    )


def _chosen(found: Explanation) -> str:
    score = "" if found.score is None else f'<th class="n">{escape(found.score.name)}</th>'
    rows = "".join(_choice(found, choice) for choice in found.choices)
    return (
        '<div class="scroll"><table><thead><tr><th>adapter</th>'
        f'{score}<th class="n">weight</th><th class="bar"></th><th class="n">ROCs a token may use</th><th></th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _choice(found: Explanation, choice: Choice) -> str:
    score = "" if found.score is None else f'<td class="n">{escape(found.score.write(choice.score))}</td>'
    seen = {True: '<span class="seen">seen</span>', False: '<span class="unseen">unseen</span>', None: ""}[
        choice.seen
    ]
    return (
        f'<tr><td>{escape(choice.name)}</td>{score}<td class="n">{100 * choice.weight:.1f} %</td>'
        f'<td class="bar"><div style="width:{100 * choice.weight:.1f}%"></div></td>'
        f'<td class="n">{choice.rocs} of {choice.rank}</td><td>{seen}</td></tr>'
    )


def _runners_up(found: Explanation) -> str:
    score = found.score
    if score is None or not found.runners_up:
        return '<p class="dim">No other adapter may be used, or would be chosen in their place.</p>'
    last = min(choice.score for choice in found.choices)
    rows = "".join(
        f'<tr><td>{escape(choice.name)}</td><td class="n">{escape(score.write(choice.score))}</td>'
        f'<td class="by">{escape(score.behind(last, choice.score))}</td></tr>'
        for choice in found.runners_up
    )
    return (
        '<div class="scroll"><table><thead><tr><th>adapter, the nearest first</th>'
        f'<th class="n">{escape(score.name)}</th><th class="by">than the last one chosen</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _tokens(found: Activation) -> str:
    """Every token, coloured by the adapter that added most to it, the stronger the more."""
    strength, shares = found.strength().sum(1), found.shares()
    top = float(torch.quantile(strength, 0.95)) or 1.0
    counts = found.counts(list(found.used))
    spans = []
    for i, token in enumerate(found.tokens):
        best = int(shares[i].argmax())
        alpha = FAINTEST + (STRONGEST - FAINTEST) * min(1.0, float(strength[i]) / top)
        said = ", ".join(
            f"{name}: {100 * share:.0f} % of what was added, {count:.1f} ROCs at a layer"
            for name, share, count in zip(found.names, shares[i].tolist(), counts[i].tolist(), strict=True)
            if share > 0
        )
        if i == found.num_prompt:
            spans.append("</div>\n<p>The answer:</p>\n" + '<div class="tokens">')
        spans.append(
            f'<span style="background:rgba({_hue(best)}, {alpha:.2f})" title="{escape(said or "no ROC")}">'
            f"{escape(token)}</span>"
        )
    keys = " ".join(
        f'<span class="key" style="background:rgba({_hue(i)}, {STRONGEST})">{escape(name)}</span>'
        for i, name in _shown(found)
    )
    return (
        "<p>The colour says which adapter added most to the model's work on a token, summed over all layers; the "
        "stronger it is, the more was added. Rest on a token to read the numbers. The first tokens may be the prompt "
        f'template\'s.</p>\n<p>{keys}</p>\n<p>The prompt:</p>\n<div class="tokens">{"".join(spans)}</div>'
    )


def _shown(found: Activation) -> Sequence[tuple[int, str]]:
    """Adapters that added most to some token, in the plan's order."""
    leading = set(found.shares().argmax(1).tolist())
    return [(i, name) for i, name in enumerate(found.names) if i in leading]


def _hue(adapter: int) -> str:
    return HUES[min(adapter, len(HUES) - 1)]
