"""Laws of refusal: one line that says what to do, of the right kind, with nothing half written or left attached."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import config
from tokenizers import decoders
from transformers import LogitsProcessor, LogitsProcessorList

from hilora import HiLoRA, Planner, get_method
from hilora.base.embed import describe_embedder
from hilora.base.fingerprint import describe_model
from hilora.base.models import load_base, parse_dtype
from hilora.base.prompts import encode_prompts, query_text
from hilora.engine.attach import attach
from hilora.errors import (
    AdapterError,
    HiloraError,
    InputError,
    MismatchError,
    ModelError,
    PoolError,
    UnknownNameError,
)
from hilora.pool import EmbedderInfo, Pool
from hilora.pool.source import adapter_folder, read_samples, samples_for
from hilora.types import Completion

CONTEXT = 256
"""Positions of the tiny models."""


@contextmanager
def refused(kind: type[HiloraError], *words: str) -> Iterator[None]:
    """The block raises an error of that kind whose one line has all the words."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert message.strip()
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, with its bytes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def drain(pieces: Generator[str, None, Completion]) -> tuple[list[str], Completion]:
    """Pieces and return value of a stream."""
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


def hooks(model: Any) -> list[Any]:
    """The hooks of ours that the model carries."""
    found = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    return [hook for hook in found if getattr(hook, "__module__", "").startswith("hilora")]


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the type checks of the tests, which would refuse wrong types before hilora can."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def model(tiny: Any) -> Any:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def sites(model: Any, tiny: Any) -> dict[str, tuple[int, int]]:
    return dict(list(tiny.sites(model, "llama").items())[:2])


@pytest.fixture
def empty(tmp_path: Path, model: Any, tokenizer: Any, embedder: Any) -> Pool:
    """A pool without adapters."""
    return Pool.create(tmp_path / "pool", describe_model("tiny", model, tokenizer), describe_embedder(embedder))


@pytest.fixture
def add(empty: Pool, sites: Any, tmp_path: Path, tiny: Any, embedder: Any) -> Callable[..., Any]:
    """Write an adapter with such settings, and add it to the empty pool."""

    def put(name: str = "new", *, samples: Sequence[str] | None = None, embed: Any = None, **settings: Any) -> Any:
        options = {key: settings.pop(key) for key in ("any_base", "replace") if key in settings}
        folder = tiny.adapter(tmp_path / "adapter", settings.pop("sites", sites), **settings)
        texts = tiny.texts("alpha", 8) if samples is None else samples
        return empty.add(name, folder, texts, embed or embedder, **options)

    return put


@contextmanager
def unchanged(pool: Pool) -> Iterator[None]:
    """The block changes neither the pool's folder nor what the object says of it."""
    before, state = contents(pool.path), (pool.entries, pool.version, pool.embedder)
    yield
    assert contents(pool.path) == before
    assert (pool.entries, pool.version, pool.embedder) == state


@pytest.fixture
def build(shared_pool: Any, tokenizer: Any, embedder: Any) -> Callable[..., HiLoRA]:
    """A router over the shared tiny pool."""

    def make(method: str = "hilora", pool: Pool | None = None, **options: Any) -> HiLoRA:
        base, shared = shared_pool("llama")
        opened = shared if pool is None else pool
        return HiLoRA.from_pretrained(base, opened, method, tokenizer=tokenizer, embedder=embedder, **options)

    return make


# --- adapters -----------------------------------------------------------------------------------------


def test_a_missing_folder_is_refused(empty: Pool, tmp_path: Path, tiny: Any, embedder: Any) -> None:
    missing = tmp_path / "nowhere"
    with unchanged(empty), refused(AdapterError, str(missing), "missing", "Check the path"):
        empty.add("new", adapter_folder(str(missing)), tiny.texts("alpha", 8), embedder)


def test_a_folder_without_an_adapter_is_refused(empty: Pool, tmp_path: Path, tiny: Any, embedder: Any) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with unchanged(empty), refused(AdapterError, "photos", "adapter_config.json", "Check the path"):
        empty.add("new", tmp_path / "photos", tiny.texts("alpha", 8), embedder)
    with unchanged(empty), refused(AdapterError, "is a file", "expected a PEFT folder"):
        empty.add("new", tmp_path / "photos" / "cat.jpg", tiny.texts("alpha", 8), embedder)


def test_an_adapter_of_another_base_is_refused_unless_any_base_is_asked_for(empty: Pool, add: Any) -> None:
    other = {"base_model_name_or_path": "somebody/Other-7B"}
    with unchanged(empty), refused(AdapterError, "'new'", "somebody/Other-7B", "'tiny'", "--any-base"):
        add(**other)
    assert add(any_base=True, **other).base_model == "somebody/Other-7B"


@pytest.mark.parametrize("named", ["tiny", "someone/TINY", "/models/tiny/", ""])
def test_the_same_base_under_another_path_or_no_name_is_accepted(named: str, add: Any) -> None:
    assert add(base_model_name_or_path=named).base_model == named


def test_an_adapter_of_another_shape_is_refused(empty: Pool, add: Any, sites: Any) -> None:
    wide = {site: (into + 1, out) for site, (into, out) in sites.items()}
    with unchanged(empty), refused(AdapterError, "shape", "this base model needs", "use it with that base model"):
        add(sites=wide, any_base=True)
    with unchanged(empty), refused(AdapterError, "which this base model does not have", "nearest"):
        add(sites={"model.layers.7.self_attn.q_proj": (16, 16)}, any_base=True)


def test_an_adapter_with_nan_weights_is_refused(empty: Pool, add: Any) -> None:
    with unchanged(empty), refused(AdapterError, "NaN or infinite", "train it again"):
        add(scale=float("nan"))


def test_an_adapter_of_rank_0_is_refused(empty: Pool, add: Any) -> None:
    with unchanged(empty), refused(AdapterError, "r is 0", "expected an integer rank from 1"):
        add(rank=0)


def test_a_taken_name_is_refused(empty: Pool, add: Any) -> None:
    add("taken")
    with unchanged(empty), refused(InputError, "'taken' already", "Choose another name", "--replace"):
        add("taken", seed=1)


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", ".hidden", "..", "-x", "a b", "a\n", "ä", "x" * 200])
def test_a_name_that_could_be_a_path_or_worse_is_refused(name: str, empty: Pool, add: Any) -> None:
    with unchanged(empty), refused(InputError, "is no adapter name", "use letters, digits"):
        add(name)


# --- samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [[], ["one alone"], ["one alone", "  ", "\n"]])
def test_fewer_than_two_samples_are_refused(samples: list[str], empty: Pool, add: Any) -> None:
    number = str(min(len(samples), 1))
    with unchanged(empty), refused(InputError, f"has {number} sample", "at least 2", "5 or more", "20", "--samples"):
        add(samples=samples)


def test_two_samples_are_accepted_and_routed_by_a_diagonal_gaussian(
    empty: Pool, add: Any, tiny: Any, embedder: Any
) -> None:
    add("many", samples=tiny.texts("alpha", 20))
    assert add("few", samples=tiny.texts("beta", 2), seed=1).num_samples == 2
    planner = Planner(empty, get_method("hilora-gs", candidates="top", k=2), embedder)
    assert planner.method.router is not None
    few = empty.index("few")
    assert few not in planner.method.router.model_.owner_.tolist()  # it has no directions of its own
    assert empty.index("many") in planner.method.router.model_.owner_.tolist()
    best = planner.explain(planner.route(tiny.texts("beta", 4, 9)))
    assert {choices[0].name for choices in best} == {"few"}


def test_embeddings_of_another_length_are_refused(empty: Pool, add: Any) -> None:
    for shape in ((8, 7), (8,)):
        with unchanged(empty), refused(MismatchError, str(shape), "'fake'", "dim 24", "hilora pool reembed"):
            add(embed=lambda texts, shape=shape: torch.zeros(shape))


def test_a_missing_samples_file_is_refused(tmp_path: Path) -> None:
    with refused(InputError, "'new' has no samples", "--samples FILE", "samples.jsonl"):
        samples_for("new", tmp_path, None)


@pytest.mark.parametrize("line", ["{broken", "17", '{"inputs": 3}', '{"question": "x"}', "null"])
def test_a_samples_file_with_a_wrong_line_is_refused_by_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(f'"good"\n\n{line}\n')
    with refused(InputError, str(path), "line 3"):
        read_samples(path)


def test_a_samples_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_bytes(b'"\xff\xfe"\n')
    with refused(InputError, "Cannot read the samples"):
        read_samples(tmp_path / "samples.jsonl")


# --- pools that were made for something else ----------------------------------------------------------


OTHER_EMBEDDERS = [
    {"name": "other"},
    {"fingerprint": "ffff"},
    {"dim": 7},
    {"instruction": "Find what is alike"},
]


@pytest.mark.parametrize("change", OTHER_EMBEDDERS, ids=str)
def test_a_pool_embedded_with_another_embedder_is_refused(
    change: dict[str, Any], shared_pool: Any, embedder: Any
) -> None:
    _, pool = shared_pool("llama")
    for key, value in change.items():
        setattr(embedder, key, value)
    (value,) = change.values()
    with refused(MismatchError, "'fake'", str(value), "hilora pool reembed", str(pool.path)):
        Planner(pool, get_method("hilora"), embedder)
    fake = pool.embedder
    with refused(MismatchError, fake.fingerprint, "0001"):
        pool.embedder.check(EmbedderInfo(fake.name, fake.dim, fake.instruction, "0001"), pool.path)


def test_a_base_with_other_modules_is_refused(shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any) -> None:
    _, pool = shared_pool("llama")
    with refused(MismatchError, "'tiny'", "no such module", "Load that base", "make a new pool"):
        HiLoRA.from_pretrained(tiny.model("gpt2"), pool, tokenizer=tokenizer, embedder=embedder)


def test_a_base_of_another_width_is_refused(shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any) -> None:
    _, pool = shared_pool("llama")
    wide = tiny.model("llama")
    wide.model.layers[1].mlp.down_proj = torch.nn.Linear(32, 16, bias=False, dtype=torch.float64)
    with refused(MismatchError, "(24, 16)", "(32, 16)", "Load that base", "make a new pool"):
        HiLoRA.from_pretrained(wide.eval(), pool, tokenizer=tokenizer, embedder=embedder)


def test_a_base_of_the_same_shape_with_other_weights_is_refused(
    shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any
) -> None:
    _, pool = shared_pool("llama")
    with refused(MismatchError, "same shape and other weights", "Load that base", "make a new pool"):
        HiLoRA.from_pretrained(tiny.model("llama", seed=1), pool, tokenizer=tokenizer, embedder=embedder)


def test_a_tokenizer_with_another_template_is_refused(shared_pool: Any, tokenizer: Any, embedder: Any) -> None:
    base, pool = shared_pool("llama")
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    with refused(MismatchError, "plain", "chat-", "Use the tokenizer of 'tiny'"):
        HiLoRA.from_pretrained(base, pool, tokenizer=chatty, embedder=embedder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_base_in_another_precision_is_accepted(
    dtype: torch.dtype, shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any
) -> None:
    _, pool = shared_pool("llama")
    HiLoRA.from_pretrained(tiny.model("llama", dtype), pool, tokenizer=tokenizer, embedder=embedder)


def test_a_model_in_training_mode_is_refused(shared_pool: Any, tiny: Any, tokenizer: Any, embedder: Any) -> None:
    _, pool = shared_pool("llama")
    with refused(ModelError, "training mode", "model.eval()"):
        HiLoRA.from_pretrained(tiny.model("llama").train(), pool, tokenizer=tokenizer, embedder=embedder)


def test_a_loaded_model_without_its_tokenizer_is_refused(shared_pool: Any, embedder: Any) -> None:
    base, pool = shared_pool("llama")
    with refused(InputError, "needs its tokenizer", "tokenizer=..."):
        HiLoRA.from_pretrained(base, pool, embedder=embedder)


# --- pool folders -------------------------------------------------------------------------------------


def test_a_folder_that_is_no_pool_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with refused(PoolError, str(path), "no pool.json", "hilora pool add"):
            Pool.open(path)


def test_a_pool_path_that_is_a_file_is_refused(tmp_path: Path, empty: Pool, embedder: Any) -> None:
    (tmp_path / "file").write_text("x")
    with refused(PoolError, "is a file", "a pool is a folder"):
        Pool.open(tmp_path / "file")
    with refused(PoolError, str(tmp_path / "file")):
        Pool.create(tmp_path / "file", empty.base, describe_embedder(embedder))
    assert (tmp_path / "file").read_text() == "x"


def test_a_pool_of_a_newer_version_is_refused(empty: Pool) -> None:
    path = empty.path / "pool.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99, "adapters": {"a": "new layout"}}))
    with refused(MismatchError, "newer", "99", "pip install --upgrade hilora"):
        Pool.open(empty.path)


DAMAGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no adapters": lambda m: {k: v for k, v in m.items() if k != "adapters"},
    "adapters null": lambda m: m | {"adapters": None},
    "adapters of numbers": lambda m: m | {"adapters": [1, 2]},
    "adapter without a hash": lambda m: m | {"adapters": [{"name": "a"}]},
    "embedder a list": lambda m: m | {"embedder": []},
    "ridge a text": lambda m: m | {"ridge": "wide"},
    "version null": lambda m: m | {"version": None},
    "format a text": lambda m: m | {"format": "one"},
    "a list": lambda m: [m],
    "a number": lambda m: 7,
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("how", DAMAGED)
def test_a_manifest_of_wrong_types_is_refused(how: str, empty: Pool) -> None:
    path = empty.path / "pool.json"
    path.write_text(json.dumps(DAMAGED[how](json.loads(path.read_text()))))
    with refused(PoolError, str(path), "Restore it from a copy"):
        Pool.open(empty.path)


@pytest.mark.parametrize("cut", [0, 1, 40, -2])
def test_a_truncated_manifest_is_refused(cut: int, empty: Pool) -> None:
    path = empty.path / "pool.json"
    path.write_bytes(path.read_bytes()[:cut])
    with refused(PoolError, str(path), "Restore it from a copy"):
        Pool.open(empty.path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"sites": {"a": [1]}}'])
def test_a_damaged_description_of_the_base_is_refused(content: bytes, empty: Pool) -> None:
    (empty.path / "base.json").write_bytes(content)
    with refused(PoolError, "base.json", "Restore it from a copy"):
        _ = Pool.open(empty.path).base


# --- prompts ------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "abab"}
PROMPTS: dict[str, tuple[Any, str]] = {
    "empty": ("", "The prompt is empty"),
    "whitespace": (" \n\t ", "The prompt is empty"),
    "empty among others": (["abab", ""], "The prompt is empty"),
    "empty chat turn": ([{"role": "user", "content": " "}], "The prompt is empty"),
    "chat without user": ([{"role": "system", "content": "Be kind."}], "no message with role 'user'"),
    "chat without content": ([{"role": "user"}], "list of {'role', 'content'} messages"),
    "chat without role": ([{"content": "abab"}], "list of {'role', 'content'} messages"),
    "chat of parts": ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "must be a text"),
    "chat of texts": ([["abab"]], "list of {'role', 'content'} messages"),
    "number": ([3], "list of {'role', 'content'} messages"),
    "half a character": ("cut here \ud83d", "'cut here \\ud83d'"),
    "half a character of the command line": ("x\udcff", "'\\udcff'"),
    "half a character in a chat": ([USER | {"content": "z\ud83d\ud83d"}], "half a character"),
    "half a character in another turn": ([{"role": "system", "content": "\ude00"}, USER], "half a character"),
    "other turn without content": ([{"role": "system"}, USER], "list of {'role', 'content'} messages"),
    "other turn without text": ([{"role": "system", "content": None}, USER], "must be a text"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("case", PROMPTS)
def test_a_prompt_that_is_no_text_or_chat_is_refused_before_anything_runs(case: str, build: Any) -> None:
    prompt, words = PROMPTS[case]
    router = build()
    router.planner.embedder.calls = 0
    with refused(InputError, words):
        router.generate(prompt, max_new_tokens=1)
    assert router.planner.embedder.calls == 0


def test_of_several_prompts_the_one_that_is_refused_is_named(build: Any) -> None:
    for wrong in ("cut \ud83d", " ", [USER | {"content": "\ud83d"}]):
        with refused(InputError, "Prompt 2: "):
            build().generate(["abab", [USER], wrong], max_new_tokens=1)


def test_no_prompts_give_no_answers(build: Any) -> None:
    assert build().generate([]) == []


def test_a_chat_is_routed_on_its_last_user_message() -> None:
    full = "z " * 20
    chat = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "x"}, USER | {"content": full}]
    assert query_text(chat) == full


def test_a_chat_that_the_template_refuses_is_refused_in_one_line(tokenizer: Any) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with refused(InputError, "Roles must alternate"):
        encode_prompts([[USER, USER]], strict)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_half_a_character_reaches_no_tokenizer(template: str | None, tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    for prompt in ("abc \ud83d", [USER | {"content": "abc \ud83d"}]):
        with refused(InputError, "Prompt 1", "at 4", "'abc \\ud83d'"):
            encode_prompts(["whole \U0001f600", prompt], own)


def test_a_prompt_longer_than_the_context_is_refused(build: Any) -> None:
    router = build()
    with refused(InputError, "Prompt 1", "250 tokens", "max_new_tokens=7", str(CONTEXT), "249", "Shorten it"):
        router.generate(["a", "a" * 250], max_new_tokens=7)
    assert len(router.generate(["a", "a" * 250], max_new_tokens=CONTEXT - 250)) == 2


# --- nobody to route to -------------------------------------------------------------------------------


def test_an_empty_pool_serves_the_base_and_says_so(empty: Pool, build: Any) -> None:
    prompts = ["abab", "zzy xyz mno"]
    want = [answer.text for answer in build("base", empty).generate(prompts, max_new_tokens=5)]
    for method in ("hilora", "hilora-gs", "hilora-roc"):
        answers = build(method, empty).generate(prompts, max_new_tokens=5)
        assert [answer.text for answer in answers] == want
        assert all("pool is empty" in answer.note and "base model" in answer.note for answer in answers)
        assert all(answer.choices == () for answer in answers)


@pytest.mark.parametrize(
    "lists", [{"allow": []}, {"deny": ["alpha", "beta", "gamma", "delta"]}], ids=["allow", "deny"]
)
@pytest.mark.parametrize("method", ["hilora", "hilora-gs", "hilora-roc"])
def test_lists_that_leave_no_adapter_serve_the_base_and_say_so(method: str, lists: Any, build: Any) -> None:
    prompts = ["abab", "zzy xyz mno"]
    want = [answer.text for answer in build("base").generate(prompts, max_new_tokens=5)]
    answers = build(method).generate(prompts, max_new_tokens=5, **lists)
    assert [answer.text for answer in answers] == want
    assert all("no adapter is allowed" in answer.note and "base model" in answer.note for answer in answers)


def test_a_pool_whose_adapters_are_all_disabled_serves_the_base_and_says_so(
    empty: Pool, add: Any, build: Any
) -> None:
    add("one")
    empty.enable("one", False)
    (want,) = build("base", empty).generate("abab", max_new_tokens=5)
    (answer,) = build("hilora", empty).generate("abab", max_new_tokens=5)
    assert (answer.text, answer.choices) == (want.text, ())
    assert "no adapter is allowed" in answer.note


# --- names and options --------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_nearest(build: Any) -> None:
    with refused(UnknownNameError, "method 'hilroa'", "Did you mean 'hilora'?", "oracle"):
        get_method("hilroa")
    with refused(UnknownNameError, "'gama'", "Did you mean 'gamma'?"):
        get_method("hilora", gama=0.3)
    with refused(UnknownNameError, "'gamma'", "criterion"):
        get_method("hilora-roc", gamma=0.3)
    with refused(UnknownNameError, "dtype 'bf61'", "Did you mean 'bf16'?"):
        parse_dtype("bf61")
    router = build()
    for lists in ({"allow": ["alhpa"]}, {"deny": ["alhpa"]}, {"labels": ["alhpa"]}):
        with refused(UnknownNameError, "adapter 'alhpa'", "Did you mean 'alpha'?"):
            router.generate("abab", max_new_tokens=1, **lists)
    with refused(UnknownNameError, "generation option 'temprature'", "Did you mean 'temperature'?"):
        router.generate("abab", max_new_tokens=1, temprature=0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("allocation", "smapled"), ("criterion", "valeu"), ("covariance", "won"), ("candidates", "tpo")],
)
def test_an_unknown_choice_of_an_option_is_refused_with_the_nearest(option: str, value: str) -> None:
    with refused(UnknownNameError, repr(value), "Did you mean"):
        get_method("hilora", **{option: value})


def test_unknown_names_are_refused_by_methods_that_do_not_route_too(build: Any) -> None:
    for lists in ({"allow": ["alhpa"]}, {"deny": ["alhpa"]}, {"labels": ["alhpa"]}):
        with refused(UnknownNameError, "adapter 'alhpa'"):
            build("base").generate("abab", max_new_tokens=1, **lists)


VALUES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("hilora", {"gamma": 0.0}, ("gamma", "got 0.0", "0 < gamma <= 1")),
    ("hilora", {"gamma": 1.5}, ("gamma", "got 1.5", "0 < gamma <= 1")),
    ("hilora", {"gamma": float("nan")}, ("gamma", "0 < gamma <= 1")),
    ("hilora", {"k": 0}, ("k", "got 0", "at least 1")),
    ("hilora-gs", {"k": -1}, ("k", "got -1", "at least 1")),
    ("hilora-roc", {"k": 0}, ("k", "0", "at least 1")),
    ("hilora", {"ridge": 0.0}, ("ridge", "above 0")),
    ("hilora", {"covariance": "tied"}, ("candidates='sign'", "candidates='top'", "covariance='own'")),
    ("hilora", {"covariance": "tied", "candidates": "top", "shrinkage": 2.0}, ("shrinkage", "2.0")),
]


@pytest.mark.parametrize(("method", "options", "words"), VALUES, ids=[f"{m} {o}" for m, o, _ in VALUES])
def test_a_method_option_that_makes_no_sense_is_refused(method: str, options: Any, words: Sequence[str]) -> None:
    with refused(InputError, *words):
        get_method(method, **options)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hilora", {"gamma": "high"}),
        ("hilora", {"k": "three"}),
        ("hilora-roc", {"k": "many"}),
        ("hilora", {"ridge": "x"}),
    ],
    ids=str,
)
def test_a_method_option_of_another_type_is_refused(method: str, options: Any) -> None:
    """As `-o gamma=high` gives it."""
    with refused(InputError, next(iter(options))):
        get_method(method, **options)


def test_the_oracle_needs_a_label_for_every_prompt(build: Any) -> None:
    with refused(InputError, "right adapter of every prompt", "labels=[...]", "'hilora'"):
        build("oracle").generate("abab", max_new_tokens=1)
    for method in ("oracle", "hilora", "base"):
        with refused(InputError, "labels name 1 adapters for 2 prompts", "one each"):
            build(method).generate(["abab", "zzy"], labels=["alpha"], max_new_tokens=1)


@pytest.mark.parametrize("lists", [{"allow": ["beta"]}, {"deny": ["alpha"]}], ids=["allow", "deny"])
def test_a_label_that_is_not_allowed_is_refused(lists: Any, build: Any) -> None:
    with refused(InputError, "not allowed"):
        build("oracle").generate("abab", labels=["alpha"], max_new_tokens=1, **lists)


@pytest.mark.parametrize("number", [0, -3])
def test_an_answer_of_no_tokens_is_refused(number: int, build: Any) -> None:
    with refused(InputError, "max_new_tokens must be at least 1", str(number)):
        build().generate("abab", max_new_tokens=number)


@pytest.mark.parametrize("number", [0, -3])
def test_a_batch_of_no_prompts_is_refused(number: int, build: Any) -> None:
    with refused(InputError, "batch_size", str(number)):
        build().generate("abab", max_new_tokens=1, batch_size=number)


def test_beams_with_sampling_are_refused(build: Any) -> None:
    with refused(InputError, "choose do_sample or num_beams"):
        build().generate("abab", max_new_tokens=1, num_beams=2, do_sample=True)


@pytest.mark.parametrize(
    "options",
    [{"num_return_sequences": 2}, {"num_beams": 2, "num_return_sequences": 3}],
    ids=str,
)
def test_generation_options_that_do_not_go_together_are_refused(options: Any, build: Any) -> None:
    router = build()
    with refused(InputError, "do not fit together"):
        router.generate("abab", max_new_tokens=1, **options)
    assert not hooks(router.model)
    assert len(router.generate("abab", max_new_tokens=1)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 2.0},
        {"top_k": -1},
        {"typical_p": -0.5},
        {"eta_cutoff": 3},
    ],
    ids=str,
)
def test_sampling_options_that_make_no_sense_are_refused(options: Any, build: Any) -> None:
    router = build()
    router.planner.embedder.calls = 0
    with refused(InputError, next(iter(options))):
        router.generate("abab", max_new_tokens=1, do_sample=True, **options)
    assert router.planner.embedder.calls == 0


USELESS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0.7}, "do_sample=True"),
    ({"temperature": 1.0}, "do_sample=True"),
    ({"temperature": -0.7}, "above 0"),
    ({"top_p": 0.9}, "do_sample=True"),
    ({"top_k": 5}, "do_sample=True"),
    ({"min_p": 0.1}, "do_sample=True"),
    ({"typical_p": 0.5}, "do_sample=True"),
    ({"temperature": 0.0, "top_p": 0.9}, "do_sample=True"),
    ({"do_sample": False, "temperature": 0.7}, "do_sample=True"),
    ({"max_length": 10}, "max_new_tokens"),
    ({"min_length": 3}, "min_new_tokens"),
    ({"min_new_tokens": 9}, "max_new_tokens=8"),
    ({"min_new_tokens": -1}, "between 0 and"),
    ({"length_penalty": 2.0}, "num_beams"),
    ({"early_stopping": True}, "num_beams"),
    ({"return_dict_in_generate": True}, "completions"),
    ({"output_scores": True}, "completions"),
    ({"eos_token_id": "</s>"}, "a token's number"),
    ({"eos_token_id": [1, -1]}, "a token's number"),
    ({"stop": ["end", ""]}, "empty"),
    ({"stop": [5]}, "must be a text"),
    ({"stop": 5}, "must be a text"),
    ({"stop": "half \ud83d"}, "half a character"),
    ({"stop_strings": [""]}, "empty"),
]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("options", "words"), USELESS, ids=[str(options) for options, _ in USELESS])
def test_an_option_that_would_do_nothing_is_refused_before_anything_runs(
    options: Any, words: str, build: Any
) -> None:
    router = build()
    router.planner.embedder.calls = 0
    for ask in (router.generate, lambda *a, **k: next(router.stream(*a, **k))):
        with refused(InputError, words):
            ask("abab", max_new_tokens=8, **options)
    assert router.planner.embedder.calls == 0


def test_temperature_0_takes_the_likeliest_token(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    router = build()
    greedy = router.generate(STREAMED, max_new_tokens=8)
    assert router.generate(STREAMED, max_new_tokens=8, temperature=0) == greedy
    monkeypatch.setattr(router.model.generation_config, "do_sample", True)
    assert router.generate(STREAMED, max_new_tokens=8, temperature=0.0) == greedy
    assert router.generate(STREAMED, max_new_tokens=8, do_sample=False) == greedy


def test_a_model_that_samples_by_itself_needs_no_do_sample(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    router = build()
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.7, "top_k": 9, "seed": 3}
    want = router.generate(STREAMED, do_sample=True, **options)
    monkeypatch.setattr(router.model.generation_config, "do_sample", True)
    assert router.generate(STREAMED, **options) == want
    with refused(InputError, "choose do_sample or num_beams"):
        router.generate("abab", max_new_tokens=1, num_beams=2)


@pytest.mark.parametrize(
    "options",
    [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"top_h": 1e-9}, {"epsilon_cutoff": 0.9999}],
    ids=str,
)
def test_every_option_that_narrows_the_draw_is_heard(options: Any, build: Any) -> None:
    """So narrow that one token is left."""
    router = build()
    greedy = [answer.text for answer in router.generate(STREAMED, max_new_tokens=8)]
    drawn = router.generate(STREAMED, max_new_tokens=8, do_sample=True, temperature=3, seed=1, **options)
    assert [answer.text for answer in drawn] == greedy
    free = router.generate(STREAMED, max_new_tokens=8, do_sample=True, temperature=3, seed=1)
    assert [answer.text for answer in free] != greedy


@pytest.mark.parametrize("options", [{"typical_p": 0.05}, {"eta_cutoff": 0.9}], ids=str)
def test_options_that_leave_out_what_is_not_typical_are_heard(options: Any, build: Any) -> None:
    router = build()
    asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "temperature": 2, "seed": 1}
    assert router.generate(STREAMED, **asked, **options) != router.generate(STREAMED, **asked)


def test_a_base_model_that_is_not_there_is_refused(tmp_path: Path, shared_pool: Any, embedder: Any) -> None:
    _, pool = shared_pool("llama")
    with refused(ModelError, "nowhere", "config.json", "smollm2-135m"):
        HiLoRA.from_pretrained(str(tmp_path / "nowhere"), pool, embedder=embedder)


def test_a_dtype_that_does_not_exist_is_refused_before_the_weights_are_read(tmp_path: Path, model: Any) -> None:
    model.config.save_pretrained(tmp_path)
    with refused(UnknownNameError, "dtype 'bf61'", "Did you mean 'bf16'?"):
        load_base(str(tmp_path), dtype="bf61")


# --- stop strings and streams -------------------------------------------------------------------------


STREAMED = ["zzy xyz", "abab baab", "1132 3211 123", "mmnn onm noom", "qrs", "abba xyz 12"]


@pytest.fixture
def router(shared_pool: Any, tokenizer: Any, embedder: Any) -> HiLoRA:
    """A router whose tokenizer puts no spaces between its tokens (one character each) when it decodes."""
    base, pool = shared_pool("llama")
    joined = copy.deepcopy(tokenizer)
    joined.backend_tokenizer.decoder = decoders.Fuse()
    options = {"candidates": "top", "k": 2}
    return HiLoRA.from_pretrained(base, pool, "hilora-gs", tokenizer=joined, embedder=embedder, **options)


def stoppable(router: HiLoRA) -> tuple[str, str, str]:
    """A prompt, its answer, and a character that first appears well inside the answer."""
    for prompt in STREAMED:
        text = router.generate(prompt, max_new_tokens=24)[0].text
        later = [c for i, c in enumerate(text) if text.find(c) == i > 1 and c not in "<pad>eosunk \n"]
        if later:
            return prompt, text, later[0]
    raise AssertionError("every answer repeats its first characters; choose other prompts")


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(router: HiLoRA) -> None:
    prompt, text, stop = stoppable(router)
    for stops in (stop, [stop], ["never seen", stop]):
        (answer,) = router.generate(prompt, max_new_tokens=24, stop=stops)
        assert answer.text == text[: text.find(stop)]
        assert answer.finish_reason == "stop"
        assert answer.completion_tokens <= text.find(stop) + 1
    for answer in router.generate(STREAMED, max_new_tokens=24, stop=stop):
        assert stop not in answer.text


def test_an_answer_that_a_stop_text_ends_is_the_same_alone_and_in_a_batch(router: HiLoRA) -> None:
    _, _, stop = stoppable(router)
    together = router.generate(STREAMED, max_new_tokens=24, stop=stop)
    alone = [router.generate(prompt, max_new_tokens=24, stop=stop)[0] for prompt in STREAMED]
    assert [(a.text, a.completion_tokens) for a in together] == [(a.text, a.completion_tokens) for a in alone]


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 1.5, "seed": 4}], ids=["greedy", "sampled"]
)
def test_streamed_pieces_join_to_the_answer_of_generate(router: HiLoRA, options: Any) -> None:
    for prompt in STREAMED[:3]:
        (want,) = router.generate(prompt, max_new_tokens=24, **options)
        pieces, answer = drain(router.stream(prompt, max_new_tokens=24, **options))
        assert answer == want
        assert "".join(pieces) == want.text


def test_streamed_pieces_join_to_the_answer_with_stop_texts_too(router: HiLoRA) -> None:
    prompt, _, stop = stoppable(router)
    pieces, answer = drain(router.stream(prompt, max_new_tokens=24, stop=stop))
    assert answer.finish_reason == "stop"
    assert "".join(pieces) == answer.text


def test_an_error_inside_a_stream_reaches_the_caller(router: HiLoRA) -> None:
    with refused(InputError, "The prompt is empty"):
        drain(router.stream(""))
    with refused(UnknownNameError, "Did you mean 'alpha'"):
        drain(router.stream("abab", allow=["alhpa"]))

    class Broken(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] > len("abab") + 2:
                raise ZeroDivisionError
            scores[:, router.tokenizer.eos_token_id] = -torch.inf
            return scores

    with pytest.raises(ZeroDivisionError):
        drain(router.stream("abab", max_new_tokens=24, logits_processor=LogitsProcessorList([Broken()])))
    assert not hooks(router.model)
    assert len(router.generate("abab", max_new_tokens=1)) == 1  # the lock is free


# --- attach -------------------------------------------------------------------------------------------


def test_a_model_carries_one_plan_at_a_time(router: HiLoRA) -> None:
    gate = router.planner.method.gate
    plan = router.planner.plan(router.planner.route(["abab"]), [0])
    stack = router.lanes.bank.sites_of(plan, router.planner.source)
    with attach(router.model, stack, plan, gate):
        assert len(hooks(router.model)) == len(stack)
        with (
            refused(ModelError, "already carries a plan", "Leave the first"),
            attach(router.model, stack, plan, gate),
        ):
            pass
        assert len(hooks(router.model)) == len(stack)
    assert not hooks(router.model)


def test_an_exception_inside_attach_leaves_no_hook(router: HiLoRA) -> None:
    plan = router.planner.plan(router.planner.route(["abab"]), [0])
    stack, gate = router.lanes.bank.sites_of(plan, router.planner.source), router.planner.method.gate
    with pytest.raises(ZeroDivisionError), attach(router.model, stack, plan, gate):
        raise ZeroDivisionError
    assert not hooks(router.model)
    with attach(router.model, stack, plan, gate):  # and it can be attached to again
        pass


def test_a_plan_for_modules_that_the_model_lacks_is_refused(router: HiLoRA, tiny: Any) -> None:
    plan = router.planner.plan(router.planner.route(["abab"]), [0])
    other = tiny.model("gpt2")
    with (
        refused(ModelError, "has no module", "another base model"),
        attach(other, router.lanes.bank.sites_of(plan, router.planner.source), plan, router.planner.method.gate),
    ):
        pass
    assert not hooks(other)


def test_a_plan_for_another_batch_is_refused_and_leaves_no_hook(router: HiLoRA) -> None:
    plan = router.planner.plan(router.planner.route(["abab", "zzy"]), [0, 1])
    with (
        refused(ModelError, "3 tokens for a plan of 2 rows", "Run the model with the batch"),
        attach(
            router.model, router.lanes.bank.sites_of(plan, router.planner.source), plan, router.planner.method.gate
        ),
    ):
        router.model(torch.tensor([[5, 6, 7]]))
    assert not hooks(router.model)
