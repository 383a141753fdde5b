"""A disk that is full at every write: the pool lies on a small one, on which so many KiB are left, from none upwards.

The disk is a tmpfs in a mount namespace of this part's own, which needs no rights where the system allows user
namespaces (`unshare -rm`). Where it does not, the row says that nothing was run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hilora.errors import PoolError
from hilora.pool import Pool
from hilora.serve.state import State
from soaking.made import SECRET, Server, bench, server, until

HOME = Path(__file__).parents[1]
SIZE = 24 << 20
PAGE = 4096
INSIDE = ("unshare", "--user", "--map-root-user", "--mount")


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Every write, at every KiB."""
    trial = home / "trial"
    trial.mkdir()
    mounting = [*INSIDE, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(trial)]
    try:
        refused = subprocess.run(mounting, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as error:
        yield {"what": "not run", "counts": {}, "wrong": [], "why": str(error)}
        return
    if refused.returncode:
        yield {"what": "not run", "counts": {}, "wrong": [], "why": refused.stderr.strip()}
        return
    command = [*INSIDE, sys.executable, "-m", "soaking.full", str(scale), str(home), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HOME) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise RuntimeError(f"The part ended with status {process.returncode}.")


class Disk:
    """The small disk under a pool."""

    def __init__(self, pool: Path) -> None:
        self.pool, self.ballast = pool, pool / "ballast"
        pool.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(pool)], check=True)

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.pool)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def left(self, size: int) -> Iterator[None]:
        """So many bytes are free when it begins."""
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free - size)
        assert self.free == size
        try:
            yield
        finally:
            self.ballast.unlink()


def steps(scale: float) -> Iterator[int]:
    """Bytes that are left: page by page, or fewer of them."""
    return iter(range(0, SIZE // 4, PAGE * max(1, round(0.6 / scale))))


def inside(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """The part, where it may mount."""
    disk = Disk(home / "bench" / "pool")
    with bench(home / "bench") as made:
        yield by_library(disk, made, scale, seed)
        State(made.pool.path).add_token("", ["use", "upload", "admin"])
        with server(made) as shaken:
            secret, _ = State(made.pool.path).add_token("", ["use", "upload", "admin"])
            shaken.client.headers["Authorization"] = f"Bearer {secret}"
            until(lambda: Pool.open(made.pool.path).epoch_info is not None)
            yield uploads(disk, shaken, scale, seed)
            yield removals(disk, shaken, scale, seed)


def partial(pool: Path) -> list[str]:
    """Files that were begun."""
    return [str(path) for path in pool.rglob(".partial-*")]


def by_library(disk: Disk, made: Any, scale: float, seed: int) -> dict[str, Any]:
    """What the library and the command line write."""
    counts, wrong = {"refused": 0, "done": 0}, list[str]()
    pool, path = made.pool, made.pool.path

    def add() -> None:
        pool.add(f"own{seed}", made.folder(seed + 40), made.texts("delta", seed + 40), made.embedder)

    works: dict[str, Callable[[], Any]] = {
        "pool add": add,
        "a new epoch": pool.renew_epoch,
        "a token": lambda: State(path).add_token("", ["use"]),
        "taking out": lambda: pool.remove(f"own{seed}"),
    }
    for name, work in works.items():
        for size in steps(scale):
            before = (path / "pool.json").read_bytes()
            with disk.left(size):
                try:
                    work()
                    done = True
                except PoolError as error:
                    done = False
                    if "space" not in str(error) and "full" not in str(error):
                        wrong.append(f"{name}, {size} bytes left: {error}")
                except Exception as error:  # noqa: BLE001
                    done = False
                    wrong.append(f"{name}, {size} bytes left: {error!r}")
                if not done and (path / "pool.json").read_bytes() != before:
                    wrong.append(f"{name}, {size} bytes left: refused, and the manifest has changed")
                if partial(path):
                    wrong.append(f"{name}, {size} bytes left: {partial(path)}")
            counts["done" if done else "refused"] += 1
            if done:
                break
    wrong += [f"{entry.name}: {why}" for entry, why in Pool.open(path).check() if why]
    return {"what": "by the library", "counts": counts, "wrong": wrong}


def well(shaken: Server, when: str) -> list[str]:
    """What a server on a full disk does not do that it should."""
    wrong = []
    for model in ("auto", "alpha", "base"):
        asked = shaken.client.post(
            "/v1/completions", json={"model": model, "prompt": "abab", "max_tokens": 3, "temperature": 0}
        )
        if asked.status_code != 200:
            wrong.append(f"{when}: {model} is not answered: {asked.text[:200]}")
    if found := shaken.holding(SECRET):
        wrong.append(f"{when}: samples lie in {found}")
    if found := shaken.bench.left():
        wrong.append(f"{when}: files of an upload lie in {found}")
    if found := partial(shaken.pool):
        wrong.append(f"{when}: {found}")
    if shaken.process.poll() is not None:
        raise RuntimeError(f"{when}: the server has ended. {shaken.said()[-2000:]}")
    return wrong


def refusal(sent: Any, when: str) -> list[str]:
    """What is wrong with how a client is told that the disk is full."""
    error = sent.json().get("error", {})
    told = str(error.get("message"))
    good = sent.status_code == 507 and error.get("code") == "disk_full" and "space" in told
    good = good and "Traceback" not in sent.text and "/pool" not in sent.text
    return [] if good else [f"{when}: {sent.status_code} {sent.text[:300]}"]


def uploads(disk: Disk, shaken: Server, scale: float, seed: int) -> dict[str, Any]:
    """Uploads, until there is space for one."""
    counts, wrong = {"refused": 0, "live": 0, "retried": 0, "for prune": 0}, list[str]()
    name = f"new{seed}"
    data = shaken.data()
    for size in steps(scale):
        when = f"an upload, {size} bytes left"
        with disk.left(size):
            sent = shaken.send(name, seed + 7, wait=60)
            if sent.status_code == 201:
                counts["live"] += 1
                wrong += well(shaken, when)
                break
            counts["refused"] += 1
            wrong += refusal(sent, when) + well(shaken, when)
            seen = shaken.client.get(f"/v1/adapters/{name}")
            if seen.status_code not in (200, 404) or seen.json().get("state") in ("live", "received", "checking"):
                wrong.append(f"{when}: told of as {seen.text[:200]}")
            if new := shaken.data() - data:  # of one that had passed its check
                counts["for prune"] += len(new)
                data |= new
                if len(new) != 3:
                    wrong.append(f"{when}: some files stay: {new}")
    shaken.client.delete(f"/v1/adapters/{name}")
    for size in list(steps(scale))[: max(1, round(8 * scale))]:
        with disk.left(size):
            sent = shaken.send(f"{name}again", seed + 8, wait=60)
        if sent.status_code != 201:
            counts["retried"] += 1
            sent = shaken.send(f"{name}again", seed + 8, wait=60)  # there is space again
            if sent.status_code != 201:
                wrong.append(f"an upload after {size} bytes were left: {sent.status_code} {sent.text[:300]}")
        shaken.client.delete(f"/v1/adapters/{name}again")
    if found := State(shaken.pool).open_uploads():
        wrong.append(f"still open: {found}")
    return {"what": "uploads", "counts": counts, "wrong": wrong}


def removals(disk: Disk, shaken: Server, scale: float, seed: int) -> dict[str, Any]:
    """Adapters taken out."""
    counts, wrong, name = {"refused": 0, "removed": 0}, list[str](), f"other{seed}"
    assert shaken.send(name, seed + 9, wait=60).status_code == 201
    for size in steps(scale):
        when = f"taking out, {size} bytes left"
        with disk.left(size):
            sent = shaken.client.delete(f"/v1/adapters/{name}")
            wrong += well(shaken, when)
            listed = name in [each["name"] for each in shaken.client.get("/v1/adapters").json()["data"]]
            if sent.status_code == 200:
                counts["removed"] += 1
                if listed:
                    wrong.append(f"{when}: it is still there")
                break
            counts["refused"] += 1
            wrong += refusal(sent, when)
            if not listed:
                wrong.append(f"{when}: refused, and it is gone")
    return {"what": "taking out", "counts": counts, "wrong": wrong}


if __name__ == "__main__":
    for row in inside(float(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])):
        print(json.dumps(row), flush=True)
