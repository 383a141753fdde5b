"""What becomes of uploads that were under way when a server was killed."""

from __future__ import annotations

from collections.abc import Container

from hilora.pool.view import PoolView
from hilora.serve.meters import Meters
from hilora.serve.state import State

INTERRUPTED = "interrupted: the server ended before it was checked. Send it again."


def settle(state: State, view: PoolView, there: Container[str], meters: Meters) -> None:
    """Those that the pool has are live, the others refused.

    Args:
        state: remembers uploads.
        view: the pool.
        there: ids of uploads that another server has in hand.
        meters: count what was refused.
    """
    published = {entry.extra.get("upload"): entry.hash for entry in view.entries}
    for upload in state.open_uploads():
        if upload.id in there:
            continue
        if upload.id in published:  # the server that was killed could tell nobody any more
            state.move(upload.id, "live", content=published[upload.id])
        else:
            state.move(upload.id, "refused", reason=INTERRUPTED)
            meters.uploaded("refused", "interrupted")
