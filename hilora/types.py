"""What flows: adapter -> pool -> route -> plan -> completion.

Dimensions, named once for the whole project:

    batch      rows of a batch (prompts)        adapter    adapters of a pool, or of a plan
    token      tokens of all rows, row by row   candidate  adapters that a row may use
    dim        the embedding's                  roc        rank-one components stacked at a site
    in, out    a site's features                sample     routing samples of an adapter
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

Factors = dict[str, tuple[Tensor, Tensor]]
"""Site name -> (down (rank, in), up (out, rank)), the LoRA scaling folded into `up`."""


@dataclass(frozen=True)
class Adapter:
    """One LoRA, as rank-one components."""

    name: str  # unique in a pool
    base_model: str  # that its own config says it was trained for; never used for loading
    factors: Factors
    hash: str  # sha256 of the factors: the adapter's identity

    @property
    def rank(self) -> int:
        """The largest rank over the sites; what the budget counts (`rank_pattern` may give less)."""
        return max(down.shape[0] for down, _ in self.factors.values())


@dataclass(frozen=True)
class Rocs:
    """ROCs stacked along one axis, ragged ranks welcome: what a token is compared with."""

    down: Float[Tensor, "roc in"]  # one row is a ROC's `a`
    size: Float[Tensor, "roc *batch"]  # length of its `b`; one for each row where rows have ROCs of their own
    owner: Int[Tensor, " roc"]  # plan column (adapter) of each ROC
    blocks: tuple[tuple[int, Int[Tensor, "_"]], ...]  # (rank, plan columns) of each run of adapters of one rank


@dataclass(frozen=True)
class Site(Rocs):
    """The ROCs that a batch uses at one linear module."""

    name: str  # the module's
    up: Float[Tensor, "out _"]  # one column is a ROC's `b`


@dataclass(frozen=True)
class Route:
    """Which adapters may serve each row, best first."""

    ids: Int[Tensor, "batch candidate"]  # positions in the pool
    scores: Float[Tensor, "batch candidate"]  # fp32, higher is better
    weights: Float[Tensor, "batch candidate"]  # fp32, sums to 1 in a row; 0 = padding
    leads: Float[Tensor, " batch"] | None = None  # of the best over the rest; None where scores speak for themselves


@dataclass(frozen=True)
class Plan:
    """What each row of a batch does at every site; a zero means "not used"."""

    ids: tuple[int, ...]  # the adapters that the batch uses, as positions in the pool; `Site.owner` counts along them
    ranks: Int[Tensor, "*batch adapter"]  # largest rank of each, in which `rocs` counts
    weights: Float[Tensor, "batch adapter"]  # routing weights
    rocs: Int[Tensor, "batch adapter"]  # how many ROCs a token may use of each adapter
    scale: Float[Tensor, " batch"]  # factor on the whole output
    whole: bool = False  # every adapter is used whole or not at all: nothing is to be chosen for a token
    at: Int[Tensor, " adapter"] | None = None  # `ids` where they may change, as a step reads it that does not

    def take(self, rows: Sequence[int]) -> Plan:
        """The plan of some of its rows, over the same adapters."""
        return replace(self, **{name: getattr(self, name)[list(rows)] for name in ("weights", "rocs", "scale")})


@dataclass(frozen=True)
class Choice:
    """One adapter's part in an answer."""

    name: str
    score: float  # how well it fits the prompt
    weight: float  # its routing weight
    rocs: int  # that each token used of it
    rank: int  # the ROCs that it has
    seen: bool | None  # whether its score says that it knows such prompts; None where no scores were compared


@dataclass(frozen=True)
class Completion:
    """An answer, and why it came out as it did."""

    text: str
    finish_reason: str  # "stop" (end token or stop text), "length", or "abstain" (no adapter fits, see `note`)
    choices: tuple[Choice, ...] = ()  # the adapters used, best first; none when the base model answered alone
    method: str = "base"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    note: str = ""  # what a user should know, e.g. that the pool is empty

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters used, best first."""
        return [choice.name for choice in self.choices]

    @property
    def rocs(self) -> dict[str, int]:
        """ROCs per token, by adapter."""
        return {choice.name: choice.rocs for choice in self.choices}

    def to_json(self) -> str:
        """One line of JSON with all fields."""
        return json.dumps(asdict(self), ensure_ascii=False)
