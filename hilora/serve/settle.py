"""What becomes of uploads that were under way when a server was killed."""

from __future__ import annotations

from collections.abc import Container

from hilora.pool.view import PoolView
from hilora.serve.meters import Meters
from hilora.serve.state import State
from hilora.serve.state_tables import Upload
from hilora.serve.tenants import inner_name

INTERRUPTED = "interrupted: the server ended before it was checked. Send it again."


def settle(state: State, view: PoolView, there: Container[str], meters: Meters) -> None:
    """Those that the pool has are live, the others refused.

    Args:
        state: remembers uploads.
        view: the pool.
        there: ids of uploads that another server has in hand.
        meters: count what was refused.
    """
    for upload in state.open_uploads():
        if upload.id in there:
            continue
        if _is_published(upload, view):  # the server that was killed could tell nobody any more
            state.move(upload.id, "live")
        else:
            state.move(upload.id, "refused", reason=INTERRUPTED)
            meters.uploaded("refused", "interrupted")


def _is_published(upload: Upload, view: PoolView) -> bool:
    """Whether what was sent is there under its name; when it came does not matter, and clocks may be set back."""
    name = inner_name(upload.tenant, upload.name)
    return any((each.name, each.hash) == (name, upload.hash) for each in view.entries)
