"""Laws of outputs: one run writes, another is refused, whoever dies lets go; what will not do is told early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hilora.base.outputs import alone, check_file, check_folder, refuse_held
from hilora.errors import InputError

HOLD = """
import sys
from pathlib import Path
from hilora.base.outputs import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that holds an output until its standard input ends."""
    held = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=-1, stdout=-1, text=True)
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    return held


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_what_another_run_writes_is_refused_until_that_run_ends_however_it_ends(ends: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    (tmp_path / "link.jsonl").symlink_to(path)
    with hold(path) as other:
        for name in (path, tmp_path / "link.jsonl", tmp_path / "new" / ".." / "new" / "results.jsonl"):
            with pytest.raises(InputError, match="Another run is writing"), alone(name):
                pass
            with pytest.raises(InputError, match="Another run is writing") as caught:
                refuse_held(name)
            assert "\n" not in str(caught.value)
        with alone(path.with_name("other.jsonl")):
            pass
        other.kill() if ends == "killed" else other.communicate("")
        other.wait()
        refuse_held(path)
        with alone(path), pytest.raises(InputError, match="Another run is writing"):
            refuse_held(path)


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "a"):
        raise ZeroDivisionError
    with alone(tmp_path / "a"):
        pass


def test_devices_are_anyones_and_nothing_is_put_beside_them() -> None:
    null = Path(os.devnull)
    check_file(null)
    with alone(null), alone(null):
        refuse_held(null)
    assert not null.with_name(".null.lock").exists()


def test_looking_at_a_place_makes_nothing(tmp_path: Path) -> None:
    check_file(tmp_path / "a" / "b" / "results.jsonl")
    check_folder(tmp_path / "a" / "b")
    refuse_held(tmp_path / "a" / "b" / "results.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_written_in_the_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    check_file(tmp_path / "file")
    check_folder(tmp_path)
    for path in (tmp_path / "file" / "in", tmp_path / "file" / "far" / "in", tmp_path / "dangling" / "in"):
        with pytest.raises(InputError, match="is none"):
            check_file(path)
        with pytest.raises(InputError, match="is none"):
            check_folder(path)
    with pytest.raises(InputError, match="is a folder"):
        check_file(tmp_path)
    with pytest.raises(InputError, match="is none"):
        check_folder(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "file")
    with pytest.raises(InputError, match="may not be written"):
        check_file(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for check in (check_file, check_folder):
        with pytest.raises(InputError, match="may not be written to"):
            check(tmp_path / "new" / "in")
