"""The clock is set back and forward, by a day and by a year, while a server runs and while none does."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hilora.pool import Pool
from hilora.pool.lease import holders
from hilora.serve.state import State
from soaking.made import EXACT, Server, bench, until
from soaking.shifted import CLOCK

DAY = 86400.0
SHIFTS = (-DAY, DAY, -365 * DAY, 365 * DAY, 0.0)
ROUNDS = 10


class Shaken:
    """A server whose clock is set, and what was wrong.

    Args:
        made: a bench.
        home: where the clock's file is.
    """

    def __init__(self, made: Any, home: Path, rng: random.Random) -> None:
        self.bench, self.rng, self.file = made, rng, home / "clock"
        self.counts, self.wrong = Counter[str](), list[str]()
        self.file.write_text("0")
        os.environ[CLOCK] = str(self.file)
        self.server = Server(made, EXACT, (sys.executable, str(Path(__file__).with_name("shifted.py"))))
        self.said = self.server.ask("alpha")["choices"]
        self.last = ""

    def note(self, what: str, true: bool) -> None:
        """Count a look, and what was wrong."""
        self.counts["looks"] += 1
        if not true:
            self.wrong.append(f"{what}, the clock {float(self.file.read_text()) / DAY:+g} days off")

    def set(self, seconds: float) -> None:
        """Set the clock of the server that runs."""
        self.file.write_text(str(seconds))
        self.server.process.send_signal(signal.SIGUSR1)
        self.counts["times that the clock was set"] += 1

    def upload(self, name: str, seed: int, *, replace: bool) -> None:
        """Send an adapter; its newest upload is this one, and it is live."""
        files, call = self.bench.form(seed), self.server.client.put if replace else self.server.client.post
        path = f"/v1/adapters/{name}" if replace else "/v1/adapters"
        sent = call(f"{path}?wait=60", files=files, data={} if replace else {"name": name})
        self.counts["uploads"] += 1
        self.note(f"an upload got {sent.status_code}: {sent.text[:200]}", sent.status_code == 201)
        told = self.server.look(name)
        newest = (told.get("upload") or {}).get("id")
        self.note(f"{name} has another newest upload than the last", newest == sent.json().get("id"))
        self.note(f"{name} is {told.get('state')}", told.get("state") == "live")

    def go_round(self, number: int) -> None:
        """Everything that knows of times, once."""
        name = f"new{number}"
        self.upload(name, 2 * number + 20, replace=False)
        self.set(self.rng.choice(SHIFTS))
        self.upload(name, 2 * number + 21, replace=True)
        answer = self.server.ask("alpha")["choices"]
        self.note("an answer is another", answer == self.said)
        self.note("nothing routes", bool(self.server.ask("auto")["hilora"]["adapters"]))

        pool = Pool.open(self.bench.pool.path)
        pool.enable(name, False)
        moment = time.time() + self.rng.choice(SHIFTS)
        os.utime(pool.path / "pool.json", (moment, moment))
        try:
            until(lambda: self.server.ask(name).get("error", {}).get("code") == "insufficient_permissions", 20)
        except TimeoutError:
            self.note("a change of the pool is not seen", False)
        self.counts["changes by the library"] += 1
        pool.enable(name, True)
        until(lambda: "choices" in self.server.ask(name), 20)

        state = State(pool.path)
        kept = [token.id for token in state.tokens()]
        state.add_token("t", ["use"])
        self.note("tokens are listed in another order than they came", [t.id for t in state.tokens()][:-1] == kept)
        state.revoke(state.tokens()[-1].id)
        metrics = self.server.client.get("/metrics")
        self.note("there are no metrics", metrics.status_code == 200)

    def restart(self) -> None:
        """Another server, after a crash in an upload, by another clock."""
        sent = self.server.send("crashed", 7)
        self.note("an upload is not received", sent.status_code == 202)
        time.sleep(self.rng.uniform(0, 1.0))
        self.server.kill()
        self.file.write_text(str(self.rng.choice(SHIFTS)))
        self.server.start()
        self.counts["servers killed and started"] += 1
        told = self.server.look("crashed")
        named = "crashed" in Pool.open(self.bench.pool.path).names
        self.note(f"an upload of a crash is {told['state']}", told["state"] == ("live" if named else "refused"))
        self.note("there are leases of the dead", len(holders(self.bench.pool.path)) == 1)
        if named:
            removed = self.server.client.delete("/v1/adapters/crashed")
            self.note("an adapter cannot be taken out", removed.status_code == 200)

    def end(self) -> None:
        """The pool is whole, and nothing of it is too old or too new to be deleted."""
        self.note("the server did not end well", self.server.end() == 0)
        pool = Pool.open(self.bench.pool.path)
        self.note("a file is damaged", not any(wrong for _, wrong in pool.check()))
        pool.prune()
        kept = {path.stem for path in (pool.path / "adapters").iterdir()}
        self.note("prune leaves what no adapter names", kept == {entry.hash for entry in pool.entries})


def run(scale: float, home: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Rounds by one server, with a crash after every third."""
    rng = random.Random(seed)
    with ExitStack() as stack:
        shaken = Shaken(stack.enter_context(bench(home)), home, rng)
        stack.callback(shaken.server.close)
        for number in range(max(1, round(ROUNDS * scale))):
            shaken.go_round(number)
            if number % 3 == 0:
                shaken.restart()
        shaken.end()
        yield {
            "what": "clocks that go back and forward by a day and a year",
            "counts": dict(shaken.counts),
            "wrong": shaken.wrong,
        }
