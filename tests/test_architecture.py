"""The page about the architecture names what is there, and its examples run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hilora import METHODS, HiLoRA, Pool
from hilora.base.embed import describe_embedder
from hilora.compose.rocs import CRITERIA
from hilora.engine.attachment import FORMS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211"]


def names() -> list[str]:
    """What the page names in its sentences: code that has no blank and no bracket in it."""
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    return [span for span in dict.fromkeys(re.findall(r"`([^`]+)`", text)) if re.fullmatch(r"[\w./]+", span)]


def exists(name: str) -> bool:
    """Whether a path below the package or the repository, or a dotted name below the package, is there."""
    if "/" in name or name.endswith(".py"):
        return (ROOT / "hilora" / name).exists() or (ROOT / name).exists()
    parts = name.split(".")
    for cut in range(len(parts), -1, -1):
        try:
            found: Any = import_module(".".join(["hilora", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(found, attribute) and attribute not in getattr(found, "__annotations__", {}):
                return False
            found = getattr(found, attribute, None)
        return True
    return False


@pytest.mark.parametrize("name", names())
def test_every_name_on_the_page_exists(name: str) -> None:
    assert exists(name) or name == "fit"  # a method of every router


def test_names_that_are_gone_are_found_out() -> None:
    assert len(names()) > 40
    for gone in ("planner.Planner.rout", "route/gausian.py", "compose.delta.plane", "nothing.at.all", "types.Rout"):
        assert not exists(gone)
    assert exists("methods.method.Method.complete")


def test_every_folder_is_on_the_page() -> None:
    for path in (ROOT / "hilora").iterdir():
        if path.is_dir() and path.name[0] not in "._":
            assert f"`{path.name}/`" in PAGE


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What each example defines; what they add to tables is taken out again."""
    tables: list[dict[str, Any]] = [METHODS, CRITERIA, FORMS]
    before = [dict(table) for table in tables]
    found: list[dict[str, Any]] = []
    for number, code in enumerate(EXAMPLES):
        module = ModuleType(f"example{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look things up
        exec(compile(code, "docs/architecture.md", "exec"), vars(module))
        found.append(vars(module))
    yield found
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def test_a_new_method_takes_less_than_forty_lines() -> None:
    assert len(EXAMPLES[0].splitlines()) < 40


def test_the_pages_examples_run(
    ran: list[dict[str, Any]], shared_pool: Callable[[str], tuple[Any, Pool]], tokenizer: Any, embedder: Any
) -> None:
    model, pool = shared_pool("llama")

    def build(method: str, **options: Any) -> HiLoRA:
        return HiLoRA.from_pretrained(model, pool, method, tokenizer=tokenizer, embedder=embedder, **options)

    answers = [build("above-mean", k=2, form=form).generate(PROMPTS, max_new_tokens=4) for form in FORMS]
    assert all(found == answers[0] for found in answers)  # the new form too
    assert [len(answer.adapters) for answer in answers[0]] == [2] * len(PROMPTS)
    base = build("base").generate(PROMPTS, max_new_tokens=4)
    assert [answer.text for answer in answers[0]] != [answer.text for answer in base]
    energy = build("hilora", criterion="energy").generate(PROMPTS, max_new_tokens=4)
    contribution = build("hilora", criterion="contribution").generate(PROMPTS, max_new_tokens=4)
    assert [answer.text for answer in energy] == [answer.text for answer in contribution]  # a square keeps the order


def test_an_embedder_of_ones_own_makes_a_pool(ran: list[dict[str, Any]], tmp_path: Path, tiny: Any) -> None:
    from hilora.base.fingerprint import describe_model

    letters, model = ran[2]["Letters"](), tiny.model("llama")
    base = describe_model("tiny", model, tiny.tokenizer())
    pool = Pool.create(tmp_path / "pool", base, describe_embedder(letters))
    for seed, task in enumerate(("alpha", "beta")):
        folder = tiny.adapter(tmp_path / task, tiny.sites(model, "llama"), seed=seed)
        pool.add(task, folder, tiny.texts(task, 8), letters)
    router = HiLoRA.from_pretrained(model, pool, "selection", tokenizer=tiny.tokenizer(), embedder=letters)
    (answer,) = router.generate("xyz zyx zzy", max_new_tokens=2)
    assert answer.adapters == ["beta"]
    assert torch.allclose(letters(["abc"]).norm(), torch.ones(()))
