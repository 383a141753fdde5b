"""Laws of what is typed: what no command can read is one line with the nearest name, and help is never far."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import hilora
from hilora import METHODS
from hilora.cli import main
from hilora.cli.app import app


def typed(*args: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the program, as from a shell."""
    monkeypatch.setattr(sys, "argv", ["hilora", *args])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    code = caught.value.code or 0
    assert isinstance(code, int)
    return code, *capsys.readouterr()


def every_command() -> Iterator[list[str]]:
    """The program, its groups and their commands."""

    def below(command: Any, path: list[str]) -> Iterator[list[str]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, [*path, name])

    yield from below(typer.main.get_command(app), [])


MISTYPED = {
    "rotue": ("command of hilora: 'rotue'", "Did you mean 'route'?"),
    "pool shwo": ("command of hilora pool: 'shwo'", "Did you mean 'show'?"),
    "train lroa x": ("Did you mean 'lora'?",),
    "evaluate tabel x": ("Did you mean 'table'?",),
    "figures weight": ("Did you mean 'weights'?",),
    "route abab --pol x": ("option of hilora route: '--pol'", "Did you mean '--pool'?"),
    "generate abab --max-tokens 3": ("Did you mean '--max-new-tokens'?",),
    "pool list --jsno": ("option of hilora pool list: '--jsno'", "Did you mean '--json'?"),
    "--verison": ("Did you mean '--version'?",),
    "route -q": ("'-q'", "-m"),
    "pool show": ("Missing argument", "hilora pool show --help"),
    "pool show a b": ("b", "hilora pool show --help"),
    "route abab --pool": ("--pool", "argument"),
    "route abab --seed one": ("--seed", "integer", "hilora route --help"),
    "figures activation": ("Missing option '--prompt'", "hilora figures activation --help"),
    "evaluate tasks --data x --json y --per-task 0": ("--per-task", "1"),
}


@pytest.mark.parametrize("line", MISTYPED)
def test_what_cannot_be_read_is_one_line_with_the_nearest_name(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = typed(*line.split(), monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("hilora: ")
    assert "Usage" not in err
    assert not {"╭", "│", "\x1b"} & set(err)
    assert all(word in err for word in MISTYPED[line])


@pytest.mark.parametrize("command", list(every_command()), ids=" ".join)
def test_the_short_help_is_the_help(command: list[str]) -> None:
    short, long = (CliRunner().invoke(app, [*command, each]) for each in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "Usage:" in short.stdout


@pytest.mark.parametrize("group", [[], ["pool"], ["train"], ["evaluate"], ["figures"]], ids=" ".join)
def test_a_group_alone_shows_its_help(
    group: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = typed(*group, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (2, "")
    assert "Usage:" in out


def test_the_version_is_the_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = typed("--version", monkeypatch=monkeypatch, capsys=capsys)
    assert told == (0, f"hilora {hilora.__version__}\n", "")


@pytest.mark.parametrize(("begun", "ends"), [("hilora rou", "route"), ("hilora pool sh", "show")])
def test_a_shell_completes_commands(
    begun: str, ends: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_HILORA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", begun)
    monkeypatch.setenv("COMP_CWORD", str(begun.count(" ")))
    assert typed(monkeypatch=monkeypatch, capsys=capsys) == (0, f"{ends}\n", "")


def test_methods_are_one_object_a_line_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = CliRunner().invoke(app, ["methods", "--json"]).stdout.splitlines()
    table = [json.loads(line) for line in lines]
    assert [row["name"] for row in table] == list(METHODS)
    assert all(row["summary"] for row in table)
    assert "gamma=0.4" in table[0]["options"]
