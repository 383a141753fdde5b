"""A real nginx with the example's configuration."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = Path(__file__).parents[2] / "examples" / "deployment" / "nginx.conf"
LISTENS = ("127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8082")
PATIENCE = 60.0
"""Seconds after which what waits has gone wrong, and not merely slowly."""


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@contextmanager
def nginx(home: Path, *gateways: str) -> Iterator[int]:
    """Port of an nginx that has the example's configuration, but for its addresses."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert program is not None, "there is no nginx: install the package nginx-light (Debian, Ubuntu) or nginx"
    command = [program, "-p", f"{home}/", "-e", "stderr", "-c", str(home / "nginx.conf")]
    options = "daemon off;" + ("user root;" if os.geteuid() == 0 else "")  # workers of another user cannot read here
    for _ in range(5):  # another process may take the port before nginx does
        port = free_port()
        text = CONF.read_text()
        for ours, theirs in zip(LISTENS, (f"127.0.0.1:{port}", *gateways), strict=True):
            assert text.count(ours) == 1
            text = text.replace(ours, theirs)
        (home / "nginx.conf").write_text(text)
        with (home / "said.txt").open("w") as said:
            process = subprocess.Popen([*command, "-g", options], stdout=said, stderr=said)
        try:
            if listens(process, port):
                yield port
                return
        finally:
            process.terminate()
            process.wait(PATIENCE)
    raise AssertionError((home / "said.txt").read_text())


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the process takes connections; False where it has ended."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
                return process.poll() is None
        except ConnectionRefusedError:
            time.sleep(0.02)
    return False
