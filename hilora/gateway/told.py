"""What vLLM says of itself and of what it refuses, read: cards of models, metrics, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

RUNNING, WAITING, LORAS = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:lora_requests_info"
WANTED = (RUNNING, WAITING, LORAS)
REFUSALS = {
    "LoRA is not enabled": ("takes no adapters: start vLLM with --enable-lora.", True),
    "No adapter found": (
        "does not see the folder of adapters: mount it there under the same path, or give its path there as "
        "--adapters-at.",
        False,
    ),
    "expected target modules": (
        "has no such modules as the pool's adapters change: is --model the pool's base?",
        True,
    ),
}
"""Words of vLLM's -> what they mean, and whether that stays so."""
_TOO_LARGE = re.compile(r"LoRA rank (\d+) is greater than max_lora_rank (\d+)")


class DownError(Exception):
    """A server did not answer, or failed before it said anything.

    Args:
        why: in words for the log.
        status, content, kind: of its answer, if it gave one.
    """

    def __init__(self, why: str, status: int = 0, content: bytes = b"", kind: str = "") -> None:
        super().__init__(why)
        self.status, self.content, self.kind = status, content, kind


class LostError(DownError):
    """There was no connection, or it broke."""


class UnreachedError(LostError):
    """There was no connection: nothing was asked."""


class UnloadedError(Exception):
    """A server cannot use an adapter; says which setting would let it.

    Args:
        why: in words for whoever runs it.
        max_rank: the largest rank that it takes, where that is why.
        for_good: it can load none, as it was started.
    """

    def __init__(self, why: str, *, max_rank: int | None = None, for_good: bool = False) -> None:
        super().__init__(why)
        self.max_rank, self.for_good = max_rank, for_good


@dataclass(frozen=True)
class Models:
    """What a server lists.

    Attributes:
        base: name of its base model; "" where none is listed.
        root: where that was loaded from.
        length: tokens of its context; None where that is not told.
        adapters: name -> where it was loaded from.
    """

    base: str = ""
    root: str = ""
    length: int | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Numbers:
    """What a server's metrics say; none of it where they are switched off.

    Attributes:
        requests: running and waiting, of all clients.
        max_lora: adapters that share a batch.
    """

    requests: int = 0
    max_lora: int | None = None


def models_of(page: Any) -> Models:
    """The answer of /v1/models; what is not as expected is left out."""
    cards = page.get("data") if isinstance(page, dict) else None
    cards = [card for card in cards or () if isinstance(card, dict) and isinstance(card.get("id"), str)]
    bases = [card for card in cards if not card.get("parent")]
    adapters = {card["id"]: str(card.get("root") or "") for card in cards if card.get("parent")}
    if not bases:
        return Models(adapters=adapters)
    length = bases[0].get("max_model_len")
    root = str(bases[0].get("root") or bases[0]["id"])
    return Models(bases[0]["id"], root, length if isinstance(length, int) else None, adapters)


def numbers_of(page: str) -> Numbers:
    """The answer of /metrics: of its thousand lines only those few are read that say something here."""
    lines = "\n".join(line for line in page.splitlines() if line.startswith(WANTED))
    samples = [each for family in text_string_to_metric_families(lines + "\n") for each in family.samples]
    requests = sum(int(each.value) for each in samples if each.name in (RUNNING, WAITING))
    loras = [each for each in samples if each.name == LORAS]  # old ones stay; the value is the time of each
    newest = max(loras, key=lambda each: each.value, default=None)
    most = "" if newest is None else newest.labels.get("max_lora", "")
    return Numbers(requests, int(most) if most.isdecimal() else None)


def error_of(content: bytes) -> tuple[str, str]:
    """Type and message of an error's body; "" for what it does not say."""
    try:
        error = json.loads(content).get("error")
    except (ValueError, AttributeError):
        return "", ""
    if isinstance(error, dict):
        return str(error.get("type", "")), str(error.get("message", ""))
    return "", str(error or "")


def is_unknown_model(status: int, content: bytes) -> bool:
    """Whether a server does not know the adapter that it was asked for; a path that it lacks is another matter."""
    return status == 404 and error_of(content)[0] == "NotFoundError"


def refusal_of(place: int, status: int, kind: str, message: str) -> UnloadedError:
    """What it means that a server does not load an adapter.

    Args:
        place: the server's number.
        status, kind, message: of its answer.
    """
    who = f"Backend {place}"
    if status in (404, 405) and kind != "NotFoundError":
        return UnloadedError(
            f"{who} loads no adapters while it runs: start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and one "
            "API server (--api-server-count 1).",
            for_good=True,
        )
    if found := _TOO_LARGE.search(message):
        return UnloadedError(f"{who} takes no rank above {found[2]}; got {found[1]}.", max_rank=int(found[2]))
    for words, (means, for_good) in REFUSALS.items():
        if words in message:
            return UnloadedError(f"{who} {means}", for_good=for_good)
    if status in (401, 403):
        return UnloadedError(f"{who} refuses the key: set HILORA_BACKEND_KEY.")
    return UnloadedError(f"{who} does not load an adapter ({status}): {message or kind}")


def is_failure(line: bytes) -> bool:
    """Whether a stream's first line with data says that the server has failed, as vLLM does when its engine dies."""
    if not line.startswith(b'data: {"error"'):
        return False
    try:
        code = json.loads(line.removeprefix(b"data: "))["error"].get("code")
    except (ValueError, AttributeError):
        return True
    return not isinstance(code, int) or code >= 500
