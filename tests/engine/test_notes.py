"""An answer's note says what of its prompt was routed on, however it was asked for."""

from __future__ import annotations

from typing import Any

from hilora import HiLoRA

FULL = "zzy xyz zyx yxyx " * 3
CHAT = [
    {"role": "user", "content": FULL},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "go on"},
]


def test_an_answer_to_a_short_message_says_with_what_it_was_routed(
    shared_pool: Any, tokenizer: Any, embedder: Any
) -> None:
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(model, pool, "hilora-plus", tokenizer=tokenizer, embedder=embedder)
    together, alone = router.generate([CHAT, FULL], max_new_tokens=2)
    assert together.note == "routed on the last 2 user messages together"
    assert alone.note == ""
    assert (
        [choice.name for choice in together.choices][:1] == [choice.name for choice in alone.choices][:1] == ["beta"]
    )
    whole: list[Any] = []

    def kept() -> Any:
        whole.append((yield from router.stream(CHAT, max_new_tokens=2)))

    assert "".join(kept()) == together.text
    assert whole == [together]
