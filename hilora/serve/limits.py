"""What one request, one upload and one tenant may ask of a server; every number can be set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds; counts, bytes and seconds."""

    body: int = 2 << 20  # bytes of a request, uploads apart
    depth: int = 16  # of its JSON
    header: int = 16 << 10  # bytes of all headers
    answers: int = 8  # n
    stops: int = 16
    stop_length: int = 200  # characters
    top_logprobs: int = 20
    allowed: int = 1000  # names in an allow list
    waiting: int = 256  # requests that wait
    new_tokens: int = 1024  # where a request does not say, as far as the context has room
    looked: int = 2048  # tokens of a prompt and an answer that are looked at
    running: int = 32  # rows that share a step
    deadline: float = 600.0  # seconds, waiting counted
    drain: float = 30.0  # seconds after SIGTERM for what runs
    upload: int = 512 << 20  # bytes of an upload
    uploads: int = 16  # that wait to be checked, of all tenants
    samples: int = 1000  # of an upload
    sample_length: int = 20_000  # characters
    rank: int = 512  # of an adapter
    adapters: int = 10_000  # of a tenant
    tenant_bytes: int = 64 << 30  # of a tenant
    capture: float = 0.5  # share of the other adapters' samples that a newcomer may take at most
    check_seconds: float = 600.0  # for the check of an upload
    check_memory: int = 8 << 30  # bytes, likewise
    upload_rate: int = 64 << 10  # bytes a second, on average, of an upload that takes longer than the deadline
    connections: int = 1000  # at once; less where so many files cannot be open
    patience: float = 30.0  # seconds for the headers of a request; and over which a client's rate is measured
    rate: int = 1 << 10  # bytes a second, of a client that sends a body or reads an answer
    requests_per_minute: int = 0  # of a token; 0 for no bound
