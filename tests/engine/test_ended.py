"""Laws of ends in the engine: a row stops where its reading has ended: in either lane, in beams, anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import StoppingCriteria

from hilora import HiLoRA
from hilora.types import Completion

PROMPTS = ["abab baab abba aaa", "zzy xyz", "mmnn onm noom mno mno", "1132 3211 123 2231 1132"]
MOST = 20


class Collect:
    """A streamer that keeps the tokens of one row."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, value: Any) -> None:
        self.ids += value.reshape(-1).tolist()

    def end(self) -> None:
        pass


@pytest.fixture(params=["llama", "mistral", "t5"])
def router(request: Any, shared_pool: Any, joined: Any, embedder: Any) -> HiLoRA:
    """A router whose tokens are joined without blanks, and whose "~" is a special token."""
    model, pool = shared_pool(request.param)
    joined.add_special_tokens({"additional_special_tokens": ["~"]})
    return HiLoRA.from_pretrained(model, pool, "hilora-gs", tokenizer=joined, embedder=embedder)


def tokens_of(router: HiLoRA, prompt: str, **options: Any) -> list[int]:
    """What the model says without any end."""
    collect = Collect()
    router.generate(prompt, max_new_tokens=MOST, eos_token_id=None, streamer=collect, **options)
    return collect.ids[-MOST:]


def decode(router: HiLoRA, tokens: list[int]) -> str:
    return str(router.tokenizer.decode(tokens, skip_special_tokens=True))


def cut(router: HiLoRA, tokens: list[int], ends: list[int]) -> tuple[str, str, int]:
    """Text, reason and tokens of a row that these end."""
    place = next((i for i, token in enumerate(tokens) if token in ends), None)
    return decode(router, tokens[:place]), "length" if place is None else "stop", len(tokens[:place])


def late(row: list[int]) -> int:
    """The token that is first said latest."""
    return max((token for token in row if token > 2), key=row.index)


def seen(answers: list[Completion]) -> list[tuple[str, str, int]]:
    return [(a.text, a.finish_reason, a.completion_tokens) for a in answers]


@pytest.fixture(params=["joining", "closed"])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both lanes."""
    if request.param == "closed":
        monkeypatch.setattr("hilora.engine.dispatch.can_join", lambda *_: False)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_the_calls_end_tokens_end_every_row_and_no_others(router: HiLoRA) -> None:
    rows = [tokens_of(router, prompt) for prompt in PROMPTS]
    once = sorted({token for row in rows for token in row[2:]})
    for ends in ([once[0]], [once[1]], once[::3], [rows[0][5], rows[1][9]]):
        found = router.generate(PROMPTS, max_new_tokens=MOST, eos_token_id=ends if len(ends) > 1 else ends[0])
        assert seen(found) == [cut(router, row, ends) for row in rows]
    found = router.generate(PROMPTS, max_new_tokens=MOST, eos_token_id=None)
    assert seen(found) == [(decode(router, row), "length", MOST) for row in rows]


@pytest.mark.usefixtures("way")
def test_a_special_token_as_a_stop_text_ends_rows_as_an_end_token_does(router: HiLoRA) -> None:
    """Any of the vocabulary becomes a special one here, since a random model says few of those that there are."""
    rows = [tokens_of(router, prompt) for prompt in PROMPTS]
    for token in {row[place] for row in rows for place in (3, 8)} - {0, 1, 2}:
        special = router.tokenizer.convert_ids_to_tokens(token)
        router.tokenizer.add_special_tokens({"additional_special_tokens": ["~", special]})
        found = router.generate(PROMPTS, max_new_tokens=MOST, eos_token_id=None, stop=special)
        want = [cut(router, row, [token]) for row in rows]
        assert [a.text for a in found] == [text for text, _, _ in want]
        assert [a.finish_reason for a in found] == [reason for _, reason, _ in want]


def test_a_row_takes_no_step_behind_its_end(router: HiLoRA, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = tokens_of(router, PROMPTS[0])
    end = late(row)
    place, text = row.index(end), router.tokenizer.convert_ids_to_tokens(end)
    steps = []
    original = router.model.forward
    monkeypatch.setattr(router.model, "forward", lambda *a, **k: steps.append(0) or original(*a, **k))
    options: list[dict[str, Any]] = [{"eos_token_id": end}, {"eos_token_id": None, "stop": text}]
    options += [{"eos_token_id": None, "stop_strings": [text]}]
    for more in options:
        steps.clear()
        (answer,) = router.generate(PROMPTS[0], max_new_tokens=MOST, **more)
        assert (answer.text, answer.finish_reason) == (decode(router, row[:place]), "stop")
        assert len(steps) == place + 1


def test_behind_its_end_a_row_gets_pads_while_others_go_on(router: HiLoRA, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [tokens_of(router, prompt) for prompt in PROMPTS]
    stop = next(c for c in decode(router, rows[0])[1:] if sum(c in decode(router, row) for row in rows) < len(rows))
    monkeypatch.setattr("hilora.engine.dispatch.can_join", lambda *_: False)
    outs: list[Any] = []
    original = router.model.generate
    monkeypatch.setattr(router.model, "generate", lambda **k: outs.append(original(**k)) or outs[-1])
    answers = router.generate(PROMPTS, max_new_tokens=MOST, eos_token_id=None, pad_token_id=7, stop=stop)
    order = sorted(range(len(PROMPTS)), key=lambda i: -len(PROMPTS[i]))
    for row, out in zip(order, outs[0][:, -MOST:].tolist(), strict=True):
        own = answers[row].completion_tokens
        assert out == rows[row][:own] + [7] * (MOST - own)


@pytest.mark.usefixtures("way")
def test_what_a_model_says_is_counted_even_where_it_is_the_padding_token(router: HiLoRA) -> None:
    pad = tokens_of(router, PROMPTS[1])[-1]
    for prompt in PROMPTS[:2]:
        (answer,) = router.generate(prompt, max_new_tokens=MOST, eos_token_id=None, pad_token_id=pad)
        assert (answer.completion_tokens, answer.finish_reason) == (MOST, "length")


@pytest.mark.usefixtures("way")
def test_the_models_own_stop_texts_and_least_length_hold_too(router: HiLoRA, monkeypatch: pytest.MonkeyPatch) -> None:
    row = tokens_of(router, PROMPTS[0])
    end = late(row)
    config = router.model.generation_config
    monkeypatch.setattr(config, "stop_strings", [router.tokenizer.convert_ids_to_tokens(end)])
    (answer,) = router.generate(PROMPTS[0], max_new_tokens=MOST, eos_token_id=None)
    assert (answer.text, answer.finish_reason) == (decode(router, row[: row.index(end)]), "stop")
    monkeypatch.setattr(config, "stop_strings", None)
    monkeypatch.setattr(config, "min_new_tokens", MOST - 2)
    (answer,) = router.generate(PROMPTS[0], max_new_tokens=MOST, eos_token_id=end)
    assert answer.completion_tokens >= MOST - 2


def test_an_end_that_the_model_forces_comes_once(router: HiLoRA, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the last token."""
    row = tokens_of(router, PROMPTS[0])
    monkeypatch.setattr(router.model.generation_config, "forced_eos_token_id", 1)
    end = next(token for token in range(3, 90) if token not in row)
    (answer,) = router.generate(PROMPTS[0], max_new_tokens=MOST, eos_token_id=[1, end])
    before = row[: MOST - 1]
    assert answer.text == cut(router, before, [1])[0]
    assert answer.finish_reason == "stop"


def test_criteria_of_the_callers_end_rows_too(router: HiLoRA) -> None:
    class After(StoppingCriteria):
        """Ends every row after so many tokens, those of even places sooner."""

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.start = min(getattr(self, "start", 10**6), input_ids.shape[1] - 1)
            new = input_ids.shape[1] - self.start
            return torch.tensor([new >= (4 if row % 2 == 0 else 7) for row in range(len(input_ids))])

    prompts = sorted(PROMPTS, key=len, reverse=True)
    rows = [tokens_of(router, prompt) for prompt in prompts]
    found = router.generate(prompts, max_new_tokens=MOST, eos_token_id=None, stopping_criteria=[After()])
    lengths = [4, 7, 4, 7]
    assert seen(found) == [(decode(router, row[:n]), "stop", n) for row, n in zip(rows, lengths, strict=True)]


@pytest.mark.parametrize("more", [{"num_return_sequences": 2}, {"eos_token_id": None}], ids=str)
def test_beams_that_a_stop_text_ends_are_the_same_alone_and_together(router: HiLoRA, more: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3, **more}
    text = "".join(a.text for a in router.generate(PROMPTS, **options))
    stop = sorted(set(text) - {"~"}, key=text.count)[-1]
    together = router.generate(PROMPTS, stop=stop, **options)
    if not router.model.config.is_encoder_decoder:  # whose best beams do without it
        assert any(a.finish_reason == "stop" for a in together)
    assert all(stop not in a.text for a in together)
    alone = [a for prompt in PROMPTS for a in router.generate(prompt, stop=stop, **options)]
    assert seen(alone) == seen(together)


@pytest.mark.parametrize("router", ["llama", "mistral"], indirect=True)  # an encoder-decoder has no stages
def test_rows_that_a_stop_text_ends_leave_the_batch(
    shared_pool: Any, router: HiLoRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilora.engine.loop.SHARE", 100)  # as soon as one in so many has ended
    text = [decode(router, tokens_of(router, prompt)) for prompt in PROMPTS]
    stop = next(c for c in text[0][2:] if any(c not in other for other in text))
    sizes: list[int] = []
    original: Callable[..., Any] = router.model.forward

    def forward(*args: Any, **options: Any) -> Any:
        sizes.append(len(options["input_ids"]))
        return original(*args, **options)

    monkeypatch.setattr(router.model, "forward", forward)
    found = router.generate(PROMPTS, max_new_tokens=MOST, eos_token_id=None, stop=stop)
    assert [a.finish_reason for a in found] == ["stop" if stop in each else "length" for each in text]
    assert sizes[-1] == sum(stop not in each for each in text)
