"""The adapters that may be routed to, on disk: one in, checked, kept."""

from hilora.pool.pool import Pool
from hilora.pool.view import EmbedderInfo, Entry

__all__ = ["EmbedderInfo", "Entry", "Pool"]
