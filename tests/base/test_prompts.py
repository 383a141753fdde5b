"""Laws of rendering: what the base model reads holds what was asked, whatever form its chat template wants."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hilora.base.prompts import check_whole, encode_prompts, model_text
from hilora.cli.prompts import read_asked
from hilora.errors import InputError
from hilora.evaluate.routing import read_samples as routing_samples
from hilora.evaluate.rows import load_rows
from hilora.pool.source import read_samples as pool_samples
from hilora.train.data import encode_examples
from hilora.train.data import read_lines as training_lines

LOOP = (
    "{% for m in messages %}<{{ m['role'] }}>BODY</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PARTS = "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
TEMPLATES = {
    "text": "{{ m['content'] }}",
    "text, trimmed": "{{ m['content'] | trim }}",
    "parts": PARTS,
    "either": "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + PARTS + "{% endif %}",
    "parts alone, texts refused": "{% if m['content'] is string %}{{ raise_exception('no') }}{% endif %}" + PARTS,
    "first part": "{{ m['content'][0]['text'] }}",
    "parts of users, texts of others": "{% if m['role'] == 'user' %}"
    + PARTS
    + "{% else %}{{ m['content'] }}{% endif %}",
}
PROMPTS = [
    "What is the capital of France?",
    "user",
    "a",
    "text",
    " two\n  lines ",
    'with "quotes" and <user>',
    "type",
]


def having(tokenizer: Any, template: str) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_the_base_reads_holds_the_prompt_in_every_form(kind: str, prompt: str, tokenizer: Any) -> None:
    read = model_text(prompt, having(tokenizer, LOOP.replace("BODY", TEMPLATES[kind])))
    inner = prompt.strip() if "trimmed" in kind else prompt
    assert read == f"<user>{inner}</><assistant>"


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_turn_of_a_chat_is_read(kind: str, tokenizer: Any) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    chat = [{"role": role, "content": content} for role, content in turns]
    before = copy.deepcopy(chat)
    read = model_text(chat, having(tokenizer, LOOP.replace("BODY", TEMPLATES[kind])))
    assert read == "".join(f"<{role}>{content}</>" for role, content in turns) + "<assistant>"
    assert chat == before


@pytest.mark.parametrize(
    ("body", "chat", "words"),
    [
        ("", "Hi", "leaves out a message of role 'user'"),
        ("{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}", "Hi", None),
        (
            "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}",
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "leaves out a message of role 'system'",
        ),
        ("{{ m['content'].split('\\n')[0] }}", "one\ntwo", "refuses|leaves out"),
        ("{{ m['content'] + 1 }}", "Hi", "refuses the chat"),
    ],
    ids=["nothing", "users alone", "system", "first line", "broken"],
)
def test_a_template_that_leaves_out_what_was_said_is_refused(
    body: str, chat: Any, words: str | None, tokenizer: Any
) -> None:
    own = having(tokenizer, LOOP.replace("BODY", body))
    if words is None:
        assert "Hi" in model_text(chat, own)
        return
    with pytest.raises(InputError, match=words) as caught:
        encode_prompts([chat], own)
    assert "\n" not in str(caught.value)


def test_a_template_may_cut_the_thoughts_out_of_what_the_model_said(tokenizer: Any) -> None:
    own = having(tokenizer, LOOP.replace("BODY", "{{ m['content'].split('(end)')[-1] }}"))
    chat = [("user", "Hi"), ("assistant", "hm (end)Hello."), ("user", "Bye")]
    read = model_text([{"role": role, "content": content} for role, content in chat], own)
    assert read == "<user>Hi</><assistant>Hello.</><user>Bye</><assistant>"
    gone = having(tokenizer, LOOP.replace("BODY", "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"))
    assert "Bye" in model_text([{"role": role, "content": content} for role, content in chat], gone)


def test_training_reads_prompts_as_generation_does(tokenizer: Any) -> None:
    own = having(tokenizer, LOOP.replace("BODY", PARTS))
    rows = [{"inputs": prompt, "targets": "yes"} for prompt in PROMPTS]
    assert [each.prompt for each in encode_examples(rows, own)] == encode_prompts(PROMPTS, own)
    assert len({tuple(each.prompt) for each in encode_examples(rows, own)}) == len(PROMPTS)


@pytest.mark.parametrize("template", [None, LOOP.replace("BODY", "{{ m['content'] }}")])
def test_half_a_character_is_refused_before_a_tokenizer_sees_it(template: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="half a character") as caught:
        encode_prompts(["whole", "half an emoji \ud83d here"], having(tokenizer, template))
    str(caught.value).encode()


HALF = "half \ud83d here"
READERS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "samples": (pool_samples, {"inputs": HALF}),
    "training prompts": (training_lines, {"inputs": HALF, "targets": "a"}),
    "training answers": (training_lines, {"inputs": "a", "targets": HALF}),
    "rows": (load_rows, {"inputs": HALF, "targets": "a"}),
    "rows' answers": (load_rows, {"inputs": "a", "targets": HALF}),
    "routing": (routing_samples, {"task": "a", "inputs": HALF}),
    "prompts": (lambda path: read_asked(None, path), {"prompt": HALF}),
}


@pytest.mark.parametrize("kind", READERS)
def test_half_a_character_of_a_file_is_told_in_one_wording_with_its_line(kind: str, tmp_path: Path) -> None:
    read, fields = READERS[kind]
    file = tmp_path / "lines.jsonl"
    whole = {name: text.replace("\ud83d", "\U0001f600") for name, text in fields.items()}
    file.write_text(f"{json.dumps(whole)}\n\n{json.dumps(fields)}\n")
    with pytest.raises(InputError) as caught:
        read(file)
    with pytest.raises(InputError) as wanted:
        check_whole(HALF, f"{file}, line 3")
    assert str(caught.value) == str(wanted.value)
    assert "line 3 has half a character ('\\ud83d') at 5" in str(caught.value)
    str(caught.value).encode()
    file.write_text(f"{json.dumps(whole)}\n")
    read(file)
