"""What goes wrong around the program is one line with what to do; its own faults keep their traceback."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError

from hilora.cli import app as commands
from hilora.cli import main, show
from hilora.errors import InputError

End = Callable[[BaseException], tuple[Any, str]]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> End:
    """Exit code and stderr of a program whose command ends with an error."""

    def call(error: BaseException) -> tuple[Any, str]:
        def fail(**_: Any) -> None:
            raise error

        monkeypatch.setattr(commands, "app", fail)
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, capsys.readouterr().err

    return call


def os_error(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


TOLD: dict[str, tuple[BaseException, str]] = {
    "refused": (InputError("No.\nNever."), "No. Never."),
    "no file": (os_error(errno.ENOENT, "a/b"), "No such file or directory: a/b. Check the path."),
    "full disk": (os_error(errno.ENOSPC), "No space left on device. Free some space"),
    "read-only": (os_error(errno.EROFS, "page.html"), "Read-only file system: page.html. Choose a place"),
    "not mine": (os_error(errno.EACCES, "x"), "Permission denied: x. Choose a place"),
    "any other": (os_error(errno.EIO, "x"), "Input/output error: x."),
    "no number": (OSError("x is no folder.\nmore"), "x is no folder. Check the path."),
    "weights, full disk": (SafetensorError("I/O error: No space left on device (os error 28)"), "Free some space"),
    "weights": (SafetensorError("Error while deserializing header"), "get or make it again"),
    "an extra": (ModuleNotFoundError("No module named 'peft'", name="peft"), "pip install 'hilora[train]'"),
    "part of it": (ImportError("cannot import name 'x'", name="sklearn.y"), "pip install 'hilora[merge]'"),
    "a package": (ModuleNotFoundError("No module named 'abc2'", name="abc2"), "pip install --upgrade abc2"),
    "memory": (MemoryError(), "not enough memory: MemoryError. Give fewer"),
    "torch's memory": (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 GB"),
        "--dtype bf16",
    ),
    "the accelerator's": (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "--dtype bf16"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(kind: str, ends: End) -> None:
    error, line = TOLD[kind]
    code, told = ends(error)
    assert code == 2
    assert re.fullmatch(r"hilora: [^\n]+\n", told)
    assert line in told


def test_a_traceback_is_shown_to_whoever_asks(ends: End, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILORA_TRACEBACK", "1")
    code, told = ends(os_error(errno.ENOSPC))
    assert code == 2
    assert told.startswith("Traceback")
    assert told.splitlines()[-1].startswith("hilora: No space left")
    monkeypatch.setenv("HILORA_TRACEBACK", "0")
    assert "Traceback" not in ends(os_error(errno.ENOSPC))[1]


@pytest.mark.parametrize("error", [ValueError("a fault"), RuntimeError("a fault"), ImportError("x", name="hilora.x")])
def test_a_fault_of_the_program_itself_is_not_hidden(error: Exception, ends: End) -> None:
    with pytest.raises(type(error)):
        ends(error)


def test_an_interruption_is_exit_code_130_whatever_a_package_makes_of_it(ends: End) -> None:
    assert ends(KeyboardInterrupt()) == (130, "")
    made_of_it = ImportError("numpy could not be imported")
    made_of_it.__cause__ = KeyboardInterrupt()
    assert ends(made_of_it) == (130, "")


def test_an_interruption_while_commands_are_imported_is_one_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == "hilora.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "hilora.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Stopped, *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_nobody_who_has_read_enough_is_told_so(ends: End) -> None:
    assert ends(BrokenPipeError(errno.EPIPE, "Broken pipe")) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_disk_that_is_full_when_output_ends_is_told(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hilora", "pool", "--help"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert "No space left" in done.stderr.decode()


def test_output_is_not_read_to_its_end_in_silence() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "hilora", "pool", "--help"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


# --- progress -----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, for progress."""
    now = [100.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    return now


def test_progress_in_a_log_is_a_line_now_and_then_and_one_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with show.progress(100, "steps") as advance:
        for step in range(1, 36):
            clock[0] += 1
            advance(step, f"loss {step / 10}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"{n} of 100 steps, loss {n / 10}" for n in (10, 20, 30, 35)]


def test_a_log_says_how_far_it_came_and_nothing_of_what_did_not_begin(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(done: int) -> None:
        with show.progress(3, "prompts") as advance:
            if done:
                advance(done)
            raise InputError("No more.")

    for done, told in ((2, "2 of 3 prompts\n"), (0, "")):
        with pytest.raises(InputError):
            run(done)
        assert capsys.readouterr() == ("", told)


def test_a_bar_takes_nothing_that_is_printed_to_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "errors", Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setenv("TERM", "xterm")
    with show.progress(2, "prompts") as advance:
        print('{"number": 0}')
        advance(1)
    assert capsys.readouterr() == ('{"number": 0}\n', "")
    assert "prompts" in show.errors.file.getvalue()
