"""lm-evaluation-harness gets of hilora what a plain loop over its requests would get."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.decoders import Fuse

from hilora import HiLoRA, Pool
from hilora.base.embed import describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.errors import HiloraError, InputError, UnknownNameError
from hilora.evaluate import lm_eval as module
from hilora.evaluate.lm_eval import HiLoRALM
from hilora.methods import DEFAULT_METHOD
from hilora.methods.lookup import get_method
from hilora.planner import Planner

KINDS = ["llama", "gpt2", "t5"]
CONTEXTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132", "abba xyz"]
PAIRS = [(context, text) for context in CONTEXTS[:4] for text in (" a", " xyz x", " b")]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<answer>"
    "{% endif %}"
)
Shared = Callable[[str], tuple[Any, Pool]]
Make = Callable[..., HiLoRALM]


def decodes(tokenizer: Any) -> Any:
    """The tiny tokenizer, decoding letters to what they were, as stop texts need it."""
    tokenizer.backend_tokenizer.decoder = Fuse()
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny: Any) -> Any:
    return decodes(tiny.tokenizer())


@pytest.fixture
def make(shared_pool: Shared, tokenizer: Any, embedder: Any) -> Make:
    def made(kind: str = "llama", method: str = "hilora", **options: Any) -> HiLoRALM:
        model, pool = shared_pool(kind)
        return HiLoRALM(pool, method, model, tokenizer=tokenizer, embedder=embedder, **options)

    return made


@pytest.fixture
def templated(shared_pool: Shared, embedder: Any, tiny: Any, tmp_path: Path) -> HiLoRALM:
    """A base with a chat template, and a pool for it."""
    model, _ = shared_pool("llama")
    tokenizer = decodes(tiny.tokenizer())
    tokenizer.chat_template = TEMPLATE
    pool = Pool.create(tmp_path / "pool", describe_model("tiny", model, tokenizer), describe_embedder(embedder))
    for task in tiny.tasks:
        folder = tiny.adapter(tmp_path / task, tiny.sites(model, "llama"), seed=ord(task[0]))
        pool.add(task, folder, tiny.texts(task, 20), embedder)
    return HiLoRALM(pool, base=model, tokenizer=tokenizer, embedder=embedder)


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [
        Instance(kind, {}, given if isinstance(given, tuple) else (given,), i) for i, given in enumerate(arguments)
    ]


def plain_score(
    router: HiLoRA, prompt: list[int], targets: list[int], context: str | None, seed: int = 0
) -> tuple[float, bool]:
    """The plain way: one request, unpadded, all logits of a full forward pass."""
    routed = Planner(router.planner.pool, get_method("base")).route(["nothing"])
    if context is not None:
        routed = router.planner.route([context])
    if router.model.config.is_encoder_decoder:
        inputs = {"input_ids": [prompt], "decoder_input_ids": [[0, *targets[:-1]]]}
    else:
        inputs = {"input_ids": [prompt + targets[:-1]]}
    with router.attached(routed, [0], seed), torch.no_grad():
        logits = router.model(**{name: torch.tensor(ids) for name, ids in inputs.items()}).logits[0]
    if not router.model.config.is_encoder_decoder:
        logits = logits[len(prompt) - 1 :]
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    chosen = [float(row[target]) for row, target in zip(log_probs, targets, strict=True)]
    return sum(chosen), log_probs.argmax(-1).tolist() == targets


def read_ids(lm: HiLoRALM, text: str) -> list[int]:
    return list(lm.router.tokenizer(text)["input_ids"])


def same(got: list[tuple[float, bool]], want: list[tuple[float, bool]]) -> None:
    assert [score for score, _ in got] == pytest.approx([score for score, _ in want], abs=1e-5)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]


@pytest.mark.parametrize(("kind", "method"), [*product(KINDS, ["hilora", "base"]), ("llama", "arrow")])
def test_a_score_is_that_of_a_plain_loop_under_the_contexts_plan(make: Make, kind: str, method: str) -> None:
    lm = make(kind, method, batch_size=3, **({"k": 2} if method == "arrow" else {}))
    begin = 1 if kind == "t5" else 0  # there an answer begins anew, without the space
    want = [plain_score(lm.router, read_ids(lm, c), read_ids(lm, t[begin:]), c) for c, t in PAIRS]
    same(lm.loglikelihood(requests("loglikelihood", PAIRS)), want)
    if method == "hilora":
        base = make(kind, "base").loglikelihood(requests("loglikelihood", PAIRS))
        assert all(abs(score - plain) > 1e-4 for (score, _), (plain, _) in zip(want, base, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_and_the_order_change_nothing(make: Make, kind: str) -> None:
    together = make(kind, batch_size=32).loglikelihood(requests("loglikelihood", PAIRS))
    backwards = make(kind, batch_size=5).loglikelihood(requests("loglikelihood", PAIRS[::-1]))
    alone = [make(kind).loglikelihood(requests("loglikelihood", [pair]))[0] for pair in PAIRS[:5]]
    same(together, backwards[::-1])
    same(together[:5], alone)
    assert together == make(kind, batch_size=32).loglikelihood(requests("loglikelihood", PAIRS))


def test_continuations_of_a_context_share_one_route_and_one_prompt(make: Make, monkeypatch: Any) -> None:
    lm = make()
    routed, rows = [], []
    route, attached = lm.router.planner.route, lm.router.attached
    monkeypatch.setattr(lm.router.planner, "route", lambda texts: routed.append(list(texts)) or route(texts))
    monkeypatch.setattr(lm.router, "attached", lambda r, which, seed: rows.append(which) or attached(r, which, seed))
    lm.loglikelihood(requests("loglikelihood", PAIRS))
    assert routed == [CONTEXTS[:4]]
    rows.clear()
    lm.loglikelihood(requests("loglikelihood", [(CONTEXTS[0], letter) for letter in "abcd"]))
    assert rows == [[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_greedy_decoding_generates_is_greedy_and_nothing_else_is(make: Make, kind: str) -> None:
    lm = make(kind)
    answers = lm.router.generate(CONTEXTS, max_new_tokens=4)
    pairs = [(c, a.text) for c, a in zip(CONTEXTS, answers, strict=True) if len(a.text) == 4 and a.text[0] != " "]
    assert len(pairs) > 2
    assert all(greedy for _, greedy in lm.loglikelihood(requests("loglikelihood", pairs)))
    other = [(c, t[:3] + ("q" if t[3] != "q" else "w")) for c, t in pairs]
    assert not any(greedy for _, greedy in lm.loglikelihood(requests("loglikelihood", other)))


def test_after_a_chat_template_an_answer_begins_without_the_space(templated: HiLoRALM) -> None:
    router = templated.router
    prompt = {c: read_ids(templated, f"<user>{c}<answer>") for c in CONTEXTS}
    want = [plain_score(router, prompt[c], read_ids(templated, t[1:]), c) for c, t in PAIRS]
    same(templated.loglikelihood(requests("loglikelihood", PAIRS)), want)
    same(templated.loglikelihood(requests("loglikelihood", [(c, t[1:]) for c, t in PAIRS])), want)
    two = [(CONTEXTS[0], "  a")]
    want = [plain_score(router, prompt[CONTEXTS[0]], read_ids(templated, " a"), CONTEXTS[0])]
    same(templated.loglikelihood(requests("loglikelihood", two)), want)


def test_without_a_template_a_space_at_the_contexts_end_is_the_continuations(make: Make) -> None:
    lm = make()
    want = plain_score(lm.router, read_ids(lm, "abab baab"), read_ids(lm, " a"), "abab baab ")
    same(lm.loglikelihood(requests("loglikelihood", [("abab baab ", "a")])), [want])


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_context_the_base_model_scores_alone(make: Make, kind: str) -> None:
    lm = make(kind)
    begin = 1 if kind == "t5" else 0
    pairs = [("", " ab"), ("abba xyz", " a"), (" ", " xyz")]
    got = lm.loglikelihood(requests("loglikelihood", pairs))
    want = [plain_score(lm.router, [1], read_ids(lm, pairs[i][1][begin:]), None) for i in (0, 2)]
    same([got[0], got[2]], want)
    same(got[1:2], lm.loglikelihood(requests("loglikelihood", pairs[1:2])))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_whole_text_is_scored_by_the_base_model_alone_in_windows(make: Make, kind: str, tiny: Any) -> None:
    lm = make(kind, batch_size=2)
    long = "".join(tiny.texts("alpha", 30))
    texts = ["abba", long, ""]
    assert len(long) > 256 * 2
    got = lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    tokens = read_ids(lm, long)
    want, size = 0.0, 256
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        before = [1, *tokens][max(0, start + len(part) - size) : start + 1]  # all that fits
        want += plain_score(lm.router, before, part, None)[0]
    assert got[1] == pytest.approx(want, abs=1e-3)
    same([(got[0], True)], [(plain_score(lm.router, [1], read_ids(lm, "abba"), None)[0], True)])
    assert got[2] == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_a_template_the_base_scores_as_the_harness_own_model_does(
    make: Make, shared_pool: Shared, tokenizer: Any, kind: str, tiny: Any
) -> None:
    ours, theirs = make(kind, "base"), HFLM(pretrained=shared_pool(kind)[0], tokenizer=tokenizer, batch_size=4)
    pairs = [*PAIRS, ("", " ab"), ("abba ", "ab")]
    same(ours.loglikelihood(requests("loglikelihood", pairs)), theirs.loglikelihood(requests("loglikelihood", pairs)))
    texts = requests("loglikelihood_rolling", ["abba", "".join(tiny.texts("alpha", 30))])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=1e-3)


@pytest.mark.parametrize("method", ["hilora", "base"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_what_generate_gives(make: Make, kind: str, method: str) -> None:
    lm = make(kind, method, batch_size=2, seed=3, max_gen_toks=5)
    greedy = {"until": ["b", ""], "max_gen_toks": 7}
    got = lm.generate_until(requests("generate_until", [(c, greedy) for c in CONTEXTS]))
    want = lm.router.generate(CONTEXTS, max_new_tokens=7, stop=["b"], seed=3)
    assert got == [answer.text for answer in want]
    mixed = [
        (c, greedy if i % 2 else {"do_sample": False, "temperature": 0.7, "top_p": 0.9})
        for i, c in enumerate(CONTEXTS)
    ]
    short = [answer.text for answer in lm.router.generate(CONTEXTS, max_new_tokens=5, seed=3)]
    assert lm.generate_until(requests("generate_until", mixed)) == [
        (got if i % 2 else short)[i] for i in range(len(CONTEXTS))
    ]


def test_samples_are_those_of_generate_and_repeats_differ(make: Make) -> None:
    lm = make(seed=4)
    given = {"until": [], "temperature": 1.5, "max_gen_toks": 8}
    want = lm.router.generate(CONTEXTS[:2], do_sample=True, temperature=1.5, max_new_tokens=8, seed=4)
    once = lm.generate_until(requests("generate_until", [(c, given) for c in CONTEXTS[:2]]))
    assert once == [answer.text for answer in want]
    repeated = lm.generate_until(requests("generate_until", [(c, given) for c in CONTEXTS[:2] for _ in range(3)]))
    assert [repeated[0], repeated[3]] == once
    assert len(set(repeated)) > 2
    greedy = {"until": [], "do_sample": False, "max_gen_toks": 8}
    assert len(set(lm.generate_until(requests("generate_until", [(CONTEXTS[0], greedy)] * 3)))) == 1


def test_what_cannot_be_answered_is_refused_at_once(make: Make, shared_pool: Shared) -> None:
    with pytest.raises(InputError, match="oracle routes by labels"):
        make(method="oracle")
    with pytest.raises(UnknownNameError, match="gamma"):
        make(gama=0.4)
    with pytest.raises(InputError, match="batch_size"):
        make(batch_size=0)
    with pytest.raises(InputError, match="no token to score"):
        make().loglikelihood(requests("loglikelihood", [("abba", "")]))
    with pytest.raises(InputError, match=r"Prompt 1 has 25. tokens; the base model's context of 256"):
        make().loglikelihood(requests("loglikelihood", [PAIRS[0], ("a" * 254, " xyz")]))
    with pytest.raises(InputError, match="encoder-decoder"):
        make("t5").loglikelihood_rolling(requests("loglikelihood_rolling", ["abba"]))
    with pytest.raises(UnknownNameError, match="generation option"):
        make().generate_until(requests("generate_until", [("abba", {"temprature": 1.0})]))


def test_model_args_are_parsed_and_precede_the_harness_own(shared_pool: Shared, monkeypatch: Any) -> None:
    seen: dict[str, Any] = {}

    def load(base: Any, pool: Any, method: str, **options: Any) -> None:
        seen.update(options, base=base, pool=pool, method=method)

    monkeypatch.setattr(HiLoRA, "from_pretrained", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    harness = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    lm = HiLoRALM.create_from_arg_string("pool=p/q,gamma=0.3,k=2,normalise=false,batch_size=7,seed=5", harness)
    assert seen == {
        **{"pool": "p/q", "method": DEFAULT_METHOD, "base": None, "dtype": None, "device_map": "cuda:0"},
        **{"gamma": 0.3, "k": 2, "normalise": False},
    }
    assert (lm.batch_size, lm.seed, lm.max_new_tokens) == (7, 5, 256)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert HiLoRALM.create_from_arg_obj({"pool": "p"}, harness).batch_size == 1
    assert seen["device_map"] is None
    assert HiLoRALM.create_from_arg_obj({"max_new_tokens": 9}, {"batch_size": "auto"}).batch_size == 32
    assert get_model("hilora") is HiLoRALM


def test_without_the_harness_the_error_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "hilora.evaluate.lm_eval")
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(HiloraError, match=r"pip install 'hilora\[lm-eval\]'"):
        import hilora.evaluate.lm_eval  # noqa: F401


# ---- whole tasks, through the harness itself ----

CHOICES = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_mutual_info}}]
"""
ANSWERS = """\
task: tiny_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["b"], max_gen_toks: 6}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: Any) -> Iterator[Callable[..., Path]]:
    """A folder with two tasks of the harness; nothing is read from a network or kept outside of it."""
    import datasets

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / name))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    level = logging.getLogger("lm_eval").level

    def write(rows: list[dict[str, Any]]) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir()
        data = folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name, text in (("choice", CHOICES), ("answer", ANSWERS)):
            (folder / f"{name}.yaml").write_text(text.format(data=data, cache=tmp_path / "cache"))
        return folder

    yield write
    logging.getLogger("lm_eval").setLevel(level)


def rows_for(lm: HiLoRALM) -> list[dict[str, Any]]:
    """Questions whose right answers are what the model says, but for the last."""
    texts = [answer.text for answer in lm.router.generate(CONTEXTS, max_new_tokens=6, stop=["b"])]
    texts[-1] = "not this"
    rows = []
    for context, text in zip(CONTEXTS, texts, strict=True):
        choices = ["a", "xyz x", "12"]
        scores = lm.loglikelihood(requests("loglikelihood", [(context, f" {choice}") for choice in choices]))
        best = max(range(3), key=lambda i: scores[i][0])
        answer = (best + 1) % 3 if context == CONTEXTS[-1] else best
        rows.append({"question": context, "choices": choices, "answer": answer, "text": text})
    return rows


def test_the_harness_runs_tasks_of_both_kinds(make: Make, tasks: Callable[..., Path]) -> None:
    lm = make()
    folder = tasks(rows_for(lm))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options: dict[str, Any] = {"tasks": ["tiny_choice", "tiny_answer"], "task_manager": manager, "bootstrap_iters": 0}
    found = simple_evaluate(model=lm, **options)["results"]
    assert found["tiny_choice"]["acc,none"] == pytest.approx(0.8)
    assert found["tiny_answer"]["exact_match,none"] == pytest.approx(0.8)
    with pytest.raises(InputError, match="applied twice"):
        simple_evaluate(model=lm, apply_chat_template=True, **options)
    with pytest.raises(InputError, match="applied twice"):
        lm.chat_template(True)


def test_the_command_line_takes_hilora_as_a_model(
    shared_pool: Shared, tokenizer: Any, tasks: Callable[..., Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    model, pool = shared_pool("llama")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lm = HiLoRALM(pool, "hilora-roc", model, tokenizer=tokenizer, k=5)
    folder = tasks(rows_for(lm))
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))

    def run(arguments: str, *more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["lm_eval", "--model", "hilora", "--model_args", arguments, *more])
        module.main()

    args = f"pool={pool.path},base={tmp_path / 'base'},dtype=float64,method=hilora-roc,k=5,batch_size=4"
    run(
        args,
        "--tasks",
        "tiny_choice,tiny_answer",
        "--include_path",
        str(folder),
        "--output_path",
        str(tmp_path / "o"),
    )
    results = json.loads(next((tmp_path / "o").rglob("results_*.json")).read_text())
    assert results["results"]["tiny_choice"]["acc,none"] == pytest.approx(0.8)
    assert results["results"]["tiny_answer"]["exact_match,none"] == pytest.approx(0.8)
    assert results["config"]["model"] == "hilora"
    assert "tiny_answer" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        run("method=oracle", "--tasks", "tiny_choice", "--include_path", str(folder))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("hilora: The oracle routes by labels")
