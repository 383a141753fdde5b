"""The folder of adapters: whole or not there, within its budget, and never gone while somebody may use it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file

from hilora.errors import InputError
from hilora.gateway.folder import BESIDE, HOUR, MARGIN, AdapterFolder
from hilora.pool.export import write_peft
from hilora.serve.faults import AwayError, FullError

LARGE = 4 * 100 * 2 * 100
"""Bytes of an adapter below."""


def factors(rank: int = 100) -> Any:
    return {"model.layers.0.q_proj": (torch.ones(rank, 100), torch.ones(100, rank))}


def name(number: int) -> str:
    return f"hilora-{number:016x}"


def age(folder: AdapterFolder, number: int, seconds: float) -> None:
    """An adapter was used so long ago."""
    then = time.time() - seconds
    os.utime(folder.path / name(number), (then, then))
    folder._touched.clear()


def names(folder: AdapterFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_an_adapter_is_written_once_as_peft_reads_it(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path / "adapters", 10**9, 60.0)
    assert folder.write(name(1), factors(), "models/tiny")
    assert not folder.write(name(1), factors(), "models/tiny")
    assert names(folder) == {name(1)}
    config = LoraConfig.from_pretrained(str(folder.path / name(1)))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (100, 100, "models/tiny")
    assert len(load_file(folder.path / name(1) / "adapter_model.safetensors")) == 2
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in (folder.path / name(1)).iterdir())
    assert folder.size == sum(file.stat().st_size for file in (folder.path / name(1)).iterdir())
    assert folder.written == 1


def test_those_used_longest_ago_go_first_and_none_that_may_be_in_use(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path / "adapters", 3 * LARGE + 2 * BESIDE, 60.0)
    for number in range(3):
        folder.write(name(number), factors(), "tiny")
    for number, seconds in ((0, 500), (1, 400), (2, 60 + MARGIN - 5)):
        age(folder, number, seconds)
    with folder.using(name(0)):
        folder.write(name(3), factors(), "tiny")
        assert names(folder) == {name(0), name(2), name(3)}  # 1 has gone: 0 is in use here, 2 may be elsewhere
        with pytest.raises(AwayError, match="all may be in use"):
            folder.write(name(4), factors(), "tiny")
    assert folder.size <= folder.limit
    folder.write(name(4), factors(), "tiny")
    assert names(folder) == {name(2), name(3), name(4)}


def test_one_that_is_touched_in_the_moment_in_which_it_would_go_stays(tmp_path: Path, monkeypatch: Any) -> None:
    folder = AdapterFolder(tmp_path / "adapters", LARGE + 2 * BESIDE, 60.0)
    folder.write(name(0), factors(), "tiny")
    age(folder, 0, 500)
    scan = folder._scan

    def scan_and_touch() -> Any:
        found = scan()
        os.utime(folder.path / name(0))  # another gateway's request
        return found

    monkeypatch.setattr(folder, "_scan", scan_and_touch)
    with pytest.raises(AwayError):
        folder.write(name(1), factors(), "tiny")
    assert names(folder) == {name(0)}


def test_one_that_is_larger_than_the_budget_is_refused(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path / "adapters", LARGE, 60.0)
    with pytest.raises(AwayError, match="more than the gateway's folder may hold"):
        folder.write(name(0), factors(), "tiny")
    assert names(folder) == set()


def test_what_it_did_not_write_stays_and_what_a_crash_left_goes(tmp_path: Path) -> None:
    path = tmp_path / "adapters"
    mine = [path / "sst2", path / "hilora-notes", path / f"{name(7)}.txt", path / ".hidden"]
    for each in mine:
        each.mkdir(parents=True)
    linked = path / name(8)
    linked.symlink_to(tmp_path)
    old, new = path / f".{name(1)}.{'a' * 16}", path / f".{name(2)}.{'b' * 16}"
    for each in (old, new):
        write_peft(each, factors(), "tiny")
    os.utime(old, (time.time() - HOUR - 60,) * 2)
    folder = AdapterFolder(path, LARGE + 2 * BESIDE, 0.0)
    folder.write(name(3), factors(), "tiny")
    age(folder, 3, 10**6)
    folder.write(name(4), factors(), "tiny")
    assert {each.name for each in (*mine, linked, new)} | {name(4)} == names(folder)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), SafetensorError("No space left (os error 28)")])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: Any, error: Exception) -> None:
    folder = AdapterFolder(tmp_path / "adapters", 10**9, 60.0)

    def fail(path: Path, *_: Any) -> None:
        path.mkdir()
        (path / "half").write_text("x")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("hilora.gateway.folder.write_peft", fail)
        with pytest.raises(FullError):
            folder.write(name(0), factors(), "tiny")
    assert names(folder) == set()
    assert folder.write(name(0), factors(), "tiny")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Give another --adapters"):
        AdapterFolder(tmp_path / "file" / "adapters", 10**9, 60.0)


def test_many_gateways_write_one_adapter_at_once_and_readers_see_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapters"
    folders = [AdapterFolder(path, 10**9, 60.0) for _ in range(6)]
    done, seen = threading.Event(), list[int]()

    def read() -> None:
        while not done.is_set():
            for number in range(5):
                config = path / name(number) / "adapter_config.json"
                if (path / name(number)).exists():
                    assert json.loads(config.read_text())["r"] == 10
                    assert len(load_file(path / name(number) / "adapter_model.safetensors")) == 2
                    seen.append(number)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(6) as threads:
        for number in range(5):
            wrote = list(threads.map(lambda folder, n=number: folder.write(name(n), factors(10), "tiny"), folders))
            assert sum(wrote) == 1
    done.set()
    reader.join()
    assert seen
    assert {each.name for each in path.iterdir()} == {name(number) for number in range(5)}


def test_two_gateways_share_a_folder_and_a_backend(opened: Any, fakes: Any, tmp_path: Path) -> None:
    fake = fakes(pause=0.01)
    first, second = opened(fake), opened(fake)
    texts = ["aaa abab", "xyz zzy", "mno onm", "123 3211"] * 8
    with ThreadPoolExecutor(16) as threads:
        asked = [
            threads.submit((first, second)[number % 2].says, text) for number, text in enumerate([*texts, *texts])
        ]
        said = [each.result() for each in asked]
    assert len(set(said)) == 4
    served = {each.split(":")[0] for each in said}
    assert all(fake.seen.loads[each] == 1 for each in served)
    assert not any(each.name.startswith(".") for each in (tmp_path / "adapters").iterdir())
    for each in served:  # one unloads, the other goes on
        fake.adapters.pop(each)
    assert {first.says(text) for text in texts[:4]} == {second.says(text) for text in texts[:4]} == set(said)


def test_an_adapter_that_has_gone_from_the_folder_is_written_again(opened: Any, fakes: Any, tmp_path: Path) -> None:
    fake = fakes()
    gateway = opened(fake)
    said = gateway.says("aaa abab")
    shutil.rmtree(tmp_path / "adapters" / said.split(":")[0])
    fake.adapters.clear()
    assert gateway.says("aaa abab") == said
    assert (tmp_path / "adapters" / said.split(":")[0] / "adapter_config.json").exists()


def test_the_budget_is_kept_while_a_gateway_serves(opened: Any, fakes: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("hilora.gateway.folder.MARGIN", -29.9)  # of a deadline of 30
    monkeypatch.setattr("hilora.gateway.folder.FRESH", 0.01)
    monkeypatch.setattr("hilora.gateway.folder.BESIDE", 1000)
    gateway = opened(fakes(), adapter_bytes=12_000)
    for number in range(4):
        for text in ("aaa abab", "xyz zzy", "mno onm", "123 3211"):
            time.sleep(0.11)
            assert gateway.ask(f"{text} {number}").status_code == 200
            files = [path for path in (tmp_path / "adapters").rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in files) <= 12_000
    assert gateway.number("written_total") > 5
