"""Laws of leases: held by who lives, let go with him, and asked for only where somebody could prune."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hilora.errors import PoolError
from hilora.pool.lease import LEASES, holders, leased, refuse_leased


def test_a_lease_is_held_as_long_as_its_holder_wants(tmp_path: Path) -> None:
    with leased(tmp_path) as one, leased(tmp_path) as two:
        assert holders(tmp_path) == sorted([one, two])
        with pytest.raises(PoolError, match="is served"):
            refuse_leased(tmp_path, "delete files")
    assert holders(tmp_path) == []
    refuse_leased(tmp_path, "delete files")
    assert not (tmp_path / LEASES).exists()


def test_the_lease_of_a_process_that_was_killed_is_held_no_more(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from hilora.pool.lease import leased\n"
        "with leased(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [name.split("-")[0] for name in holders(tmp_path)] == [str(process.pid)]
        process.kill()
    assert holders(tmp_path) == []
    assert list(tmp_path.rglob("*.lock")) == []


def test_a_pool_that_nobody_may_write_to_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilora.pool.lease.os.access", lambda *_: False)
    with leased(tmp_path):
        assert list(tmp_path.iterdir()) == []
