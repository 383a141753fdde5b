"""A composition as it travels to vLLM's workers: one JSON value with each request, versioned and read strictly.

    {"v": 1, "adapters": [[content, factor, rocs, rank], ...], "criterion": "value", "digest": "..."}

At a site, adapter i adds factor_i B_i gate_i(A_i x), where the gate keeps a token's top `rocs` ROCs of `rank`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hilora.engine.kernels.top_rocs import CRITERIA
from hilora.errors import InputError, UnknownNameError
from hilora.gateway.parts import Part

VERSION = 1
FIELD = "hilora"
"""Of `SamplingParams.extra_args`."""
KEYS = {"v", "adapters", "criterion", "digest"}
CONTENT = re.compile(r"(canonical )?[0-9a-f]{64}")


class WireError(InputError, ValueError):
    """A value that is no composition; vLLM answers ValueErrors with status 400."""


@dataclass(frozen=True)
class Composition:
    """What a request adds to the base model."""

    parts: tuple[Part, ...]
    criterion: str = "value"  # a name in `compose.rocs.CRITERIA`

    @cached_property
    def digest(self) -> str:
        """A hash of everything that changes an answer."""
        return hashlib.sha256(json.dumps(self._told(), sort_keys=True).encode()).hexdigest()[:32]

    def _told(self) -> dict[str, Any]:
        rows = [[part.content, part.factor, part.rocs, part.rank] for part in self.parts]
        return {"v": VERSION, "adapters": rows, "criterion": self.criterion}


def encode(composition: Composition) -> dict[str, Any]:
    """The value; inverse of `decode`."""
    return composition._told() | {"digest": composition.digest}


def decode(value: object) -> Composition:
    """The composition that a value says.

    Raises:
        WireError: it says none, or one that makes no sense.
    """
    if not isinstance(value, Mapping):
        raise WireError(f"A composition is an object; got {type(value).__name__}. Make it with hilora.vllm.params.")
    if value.get("v") != VERSION or isinstance(value.get("v"), bool):
        raise WireError(
            f"The composition has version {value.get('v')!r:.40}, this hilora reads {VERSION}. "
            "Install the same hilora wherever vLLM runs."
        )
    if set(value) != KEYS:
        raise WireError(f"A composition has {sorted(KEYS)}; got {sorted(map(str, value))!r:.200}.")
    if value["criterion"] not in CRITERIA:
        raise WireError(str(UnknownNameError("criterion", str(value["criterion"])[:40], CRITERIA)))
    rows = value["adapters"]
    if not isinstance(rows, list | tuple) or not rows:
        raise WireError(f"adapters is a list of at least one; got {rows!r:.80}.")
    found = Composition(tuple(map(_part, rows)), str(value["criterion"]))
    contents = [part.content for part in found.parts]
    if len(set(contents)) < len(contents):
        raise WireError("An adapter is named twice in a composition.")
    if value["digest"] != found.digest:
        raise WireError("The composition's digest is another's: it was changed on its way.")
    return found


def _part(row: object) -> Part:
    if not isinstance(row, list | tuple) or len(row) != 4:
        raise WireError(f"An adapter is [content hash, factor, ROCs, rank]; got {row!r:.120}.")
    content, factor, rocs, rank = row
    if not isinstance(content, str) or not CONTENT.fullmatch(content):
        raise WireError(f"An adapter is named by its content hash, 64 hexadecimal digits; got {content!r:.120}.")
    for name, count in (("rocs", rocs), ("rank", rank)):
        if not isinstance(count, int) or isinstance(count, bool):
            raise WireError(f"{name} is a whole number; got {count!r:.40}.")
    if not 1 <= rocs <= rank:
        raise WireError(f"A token uses 1 to {rank} ROCs of an adapter of rank {rank}; got {rocs}.")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
        raise WireError(f"An adapter's factor is a finite number; got {factor!r:.40}.")
    return Part(content, float(factor), rocs, rank)


_seen: OrderedDict[str, Composition] = OrderedDict()
MOST_SEEN = 4096


def seen(value: Mapping[str, Any]) -> Composition:
    """`decode`, for values that were looked at before and come again at each step."""
    digest = value["digest"]
    if digest not in _seen:
        _seen[digest] = decode(value)
        while len(_seen) > MOST_SEEN:
            _seen.popitem(last=False)
    return _seen[digest]
