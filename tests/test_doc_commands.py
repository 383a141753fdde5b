"""What pages tell people to type can work: commands, options, packages, scripts, targets, Python.

Until there is a release, `pip install hilora` is none of it: an index has no hilora, or somebody else's.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hilora.cli.app import app
from hilora.cli.usage import HELP, Misread

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("pools/*/README.md"))]
COMPLETION = {"--install-completion", "--show-completion"}
OTHERS = {"bitsandbytes", "onnx", "onnxruntime", "onnxscript", "openvino", "vllm"}
"""Public packages that hilora does not depend on, and pages may name."""
JOINTS = {"&&", "||", "|", ";", "&"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
SCRIPT = re.compile(r"[\w./-]*\w\.py\b")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of fenced and of indented blocks; that of the latter is "python" where it parses so."""
    for language, code in FENCE.findall(text):
        yield language, code
    for found in INDENTED.findall(FENCE.sub("", text)):
        code = textwrap.dedent(found).strip("\n")
        if code:
            yield "python" if is_python(code) else "", code + "\n"


def is_python(code: str) -> bool:
    """Whether a block is Python: it imports or calls something."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Import | ast.ImportFrom | ast.Call) for node in ast.walk(tree))


def command_lines(code: str) -> Iterator[list[str]]:
    """The commands of a block of shell lines, as words; comments, redirections and settings are left out."""
    for line in code.replace("\\\n", " ").splitlines():
        try:
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:  # no shell line
            continue
        found: list[str] = []
        skip = False
        for word in [*words, ";"]:
            if word in JOINTS:
                if found:
                    yield found
                found = []
            elif skip or set(word) <= {"<", ">"}:
                skip = not skip
            elif found or not re.match(r"\w+=", word):
                found.append(word)


def leaf(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that words name, and what is left of them."""
    command: Any = typer.main.get_command(app)
    left = list(words)
    while left and not left[0].startswith("-") and hasattr(command, "commands"):
        command = command.commands[left.pop(0)]
    return command, left


def wrong_names(words: Sequence[str]) -> list[str]:
    """Commands and options of `hilora WORDS` that are not there; words in capitals stand for anything."""
    if words[:1] and words[0].isupper():
        return []
    try:
        command, left = leaf(words)
    except KeyError as error:
        return [f"there is no command {error}"]
    known = {name for own in command.params for name in (*own.opts, *own.secondary_opts)} | {*HELP, *COMPLETION}
    options = [word.split("=")[0] for word in left if re.match(r"--?[a-z]", word)]
    return [f"there is no option {option}" for option in options if option not in known]


def wrong_hilora(words: Sequence[str]) -> list[str]:
    """What is wrong with `hilora WORDS`, if somebody types it."""
    wrong = wrong_names(words)
    command, left = leaf(words) if not wrong else (None, [])
    if command is None or hasattr(command, "commands") or set(left) & {*HELP, *COMPLETION}:
        return wrong
    try:
        command.make_context(command.name, [word for word in left if word != "[PROMPTS]..."])
    except Misread as error:
        return [str(error.format_message())]  # type: ignore[attr-defined]
    return []


def public() -> set[str]:
    """Packages that an index has: what hilora depends on, with its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    listed += (ROOT / "requirements-default.txt").read_text().splitlines()[1:]
    return OTHERS | {plain(one) for one in listed}


def plain(requirement: str) -> str:
    """The name of what is required."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def wrong_pip(words: Sequence[str]) -> list[str]:
    """What `pip install WORDS` cannot install."""
    wrong, left = [], list(words)
    while left:
        word = left.pop(0)
        if word in ("-r", "--requirement", "-c", "--constraint"):
            if not (ROOT / left.pop(0)).is_file():
                wrong.append(f"there is no file for {word}")
        elif word.startswith("-"):
            continue
        elif word.startswith((".", "/")):
            folder, _, extras = word.rstrip("]").partition("[")
            file = ROOT / folder / "pyproject.toml"
            project = tomllib.loads(file.read_text())["project"] if file.is_file() else None
            if project is None:
                wrong.append(f"{folder} is no project")
            elif unknown := set(extras.split(",")) - {"", *project.get("optional-dependencies", {})}:
                wrong.append(f"{folder} has no extra {unknown}")
        elif plain(word) not in public():
            wrong.append(f"{word} is on no index")
    return wrong


def wrong_python(words: Sequence[str]) -> list[str]:
    """What is wrong with `python WORDS`: the module, the script, or an option that no script here has."""
    if words[0] == "-m":
        if words[1:3] == ["pip", "install"]:
            return wrong_pip(words[3:])
        return [] if is_module(words[1]) else [f"there is no module {words[1]}"]
    if not words[0].endswith(".py"):
        return []
    script = ROOT / words[0]
    if not script.is_file():
        return [f"there is no {words[0]}"]
    text = script.read_text() + "".join(path.read_text() for path in (ROOT / "reproduce").glob("*.py"))
    options = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    return [f"{words[0]} has no option {option}" for option in options if f'"{option}"' not in text]


def is_module(name: str) -> bool:
    """Whether there is a module of that name here, or a package that is required."""
    top = name.split(".", maxsplit=1)[0]
    return importlib.util.find_spec(name) is not None if top == "hilora" else plain(top) in {*public(), "venv"}


def wrong_make(words: Sequence[str]) -> list[str]:
    """Targets that the Makefile does not have."""
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [word for word in words if "=" not in word and not word.startswith("-")]
    return [f"there is no target {word}" for word in asked if word not in targets]


def wrong(words: Sequence[str]) -> list[str]:
    """What is wrong with a command, as far as it is one that can be told."""
    match words:
        case ["hilora", *rest]:
            return wrong_hilora(rest)
        case ["pip", "install", *rest]:
            return wrong_pip(rest)
        case ["make", *rest]:
            return wrong_make(rest)
        case [name, *rest] if rest and re.fullmatch(r"python[\d.]*", name):
            return wrong_python(rest)
    return []


def missing_imports(code: str) -> list[str]:
    """Names that Python imports from hilora and that are not there."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hilora":
            if importlib.util.find_spec(node.module) is None:
                missing.append(node.module)
                continue
            module = importlib.import_module(node.module)
            names = [alias.name for alias in node.names]
            missing += [f"{node.module}.{name}" for name in names if not hasattr(module, name)]
    return missing


def scripts(text: str) -> set[str]:
    """Python files that a page names in code; a word of several dots is no file."""
    code = [*SPAN.findall(FENCE.sub("", text)), *(part for language, part in blocks(text) if language != "python")]
    return {found for part in code for found in SCRIPT.findall(part)}


def is_file(name: str) -> bool:
    """Whether a page may call a file so: by its path from the top, or from the package."""
    return any((folder / name).is_file() for folder in (ROOT, ROOT / "hilora", ROOT / "docs"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_to_type_can_work(page: Path) -> None:
    text = page.read_text()
    found = [words for language, code in blocks(text) if language != "python" for words in command_lines(code)]
    assert [(" ".join(words), wrong(words)) for words in found if wrong(words)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_in_passing_is_there(page: Path) -> None:
    text = page.read_text()
    for span in SPAN.findall(FENCE.sub("", text)):
        for words in command_lines(span):
            told = wrong_names(words[1:]) if words[0] == "hilora" else wrong(words)
            assert (span, told) == (span, [])
    assert [name for name in sorted(scripts(text)) if not is_file(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_compiles_and_imports_what_there_is(page: Path) -> None:
    for language, code in blocks(page.read_text()):
        if language == "python":
            compile(code, str(page), "exec")
            assert missing_imports(code) == []


def test_the_pages_have_something_to_check() -> None:
    parts = [part for page in PAGES for part in blocks(page.read_text())]
    first = [words[0] for language, code in parts if language != "python" for words in command_lines(code)]
    assert {"hilora", "pip", "make", "python"} <= set(first)
    assert first.count("hilora") > 20
    assert sum(language == "python" for language, _ in parts) > 5


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("hilora rout x", "'rout'"),
        ("hilora pool ad a b", "'ad'"),
        ("hilora route x --pol ./pool", "--pol"),
        ("hilora generate a --max-new-tokens few", "valid integer"),
        ("hilora train lora task.jsonl", "out"),
        ("X=1 hilora generate x | hilora rout y", "'rout'"),
        ("pip install hilora", "hilora is on no index"),
        ("pip install 'hilora[train]'", "hilora[train] is on no index"),
        ("pip install '.[trian]'", "trian"),
        ("pip install ./pools/nowhere", "is no project"),
        ("python -m pip install -r nowhere.txt", "no file"),
        ("make demos", "demos"),
        ("python reproduce/hilora/nowhere.py", "nowhere.py"),
        ("python reproduce/hilora/tables.py --nowhere", "--nowhere"),
        ("python -m hilora.nowhere", "hilora.nowhere"),
    ],
)
def test_commands_that_cannot_work_are_told(line: str, told: str) -> None:
    assert told in str([wrong(words) for words in command_lines(line)])


@pytest.mark.parametrize(
    "line",
    [
        "hilora generate 'a prompt' --file x.jsonl --json > out.jsonl   # a --comment",
        "hilora pool add sst2 ./sst2 --samples s.jsonl && hilora pool check",
        "pip install '.[train,evaluate]' ./pools/flan-mini peft",
        "make demo PYTHON=python3.12",
        "python reproduce/hilora/run.py --data DATA --pool pools/flan-mini",
    ],
)
def test_commands_that_work_are_not(line: str) -> None:
    assert [wrong(words) for words in command_lines(line) if wrong(words)] == []


def test_python_that_imports_what_is_not_there_is_told() -> None:
    assert missing_imports("from hilora import HiLoRA, Nowhere") == ["hilora.Nowhere"]
    assert missing_imports("from hilora.nowhere import x") == ["hilora.nowhere"]
    assert list(blocks("text\n\n    from hilora import X\n    X()\n\nmore\n")) == [
        ("python", "from hilora import X\nX()\n")
    ]
