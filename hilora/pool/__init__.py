"""The adapters that may be routed to, on disk: one in, checked, kept."""

from hilora.base.embed import EmbedderInfo
from hilora.pool.pool import Pool
from hilora.pool.view import Entry

__all__ = ["EmbedderInfo", "Entry", "Pool"]
