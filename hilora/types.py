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
from dataclasses import asdict, dataclass, field, replace

from jaxtyping import Float, Int
from torch import Tensor

Factors = dict[str, tuple[Tensor, Tensor]]
"""Site name -> (down (rank, in), up (out, rank)), the LoRA scaling folded into `up`."""


@dataclass(frozen=True)
class Adapter:
    """One LoRA, as rank-one components.

    Attributes:
        name: how people call it; unique in a pool.
        base_model: the base it was trained for, as its own config says. Never used for loading.
        factors: down and up per site.
        hash: sha256 of the factors; the adapter's identity.
    """

    name: str
    base_model: str
    factors: Factors
    hash: str

    @property
    def rank(self) -> int:
        """The largest rank over the sites; what the budget counts (`rank_pattern` may give less)."""
        return max(down.shape[0] for down, _ in self.factors.values())


@dataclass(frozen=True)
class Rocs:
    """ROCs stacked along one axis, ragged ranks welcome: what a token is compared with.

    Attributes:
        down: (roc, in); one row is a ROC's `a`.
        size: (roc,) length of its `b`; (roc, batch) where each row has ROCs of its own.
        owner: (roc,) the plan column (adapter) of each ROC.
        blocks: (rank, columns) for each run of adapters of one rank: `columns` are their plan columns, and
            the run spans rank * len(columns) ROCs. Runs lie one after another and cover all ROCs.
    """

    down: Float[Tensor, "roc in"]
    size: Float[Tensor, "roc *batch"]
    owner: Int[Tensor, " roc"]
    blocks: tuple[tuple[int, Int[Tensor, "_"]], ...]


@dataclass(frozen=True)
class Site(Rocs):
    """The ROCs that a batch uses at one linear module.

    Attributes:
        name: the module's.
        up: (out, roc); one column is a ROC's `b`.
    """

    name: str
    up: Float[Tensor, "out _"]


@dataclass(frozen=True)
class Route:
    """Which adapters may serve each row, best first.

    Attributes:
        ids: (batch, candidate) positions in the pool.
        scores: (batch, candidate) fp32, higher is better.
        weights: (batch, candidate) fp32, sums to 1 in a row; 0 = padding.
        leads: (batch,) how far the best adapter is above the rest; None where scores speak for themselves.
    """

    ids: Int[Tensor, "batch candidate"]
    scores: Float[Tensor, "batch candidate"]
    weights: Float[Tensor, "batch candidate"]
    leads: Float[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class Plan:
    """What each row of a batch does at every site; a zero means "not used".

    Attributes:
        ids: the adapters that the batch uses, as positions in the pool (`Site.owner` counts along them).
        ranks: (adapter,) each one's largest rank, in which `rocs` is counted; (batch, adapter) where each row has
            adapters of its own.
        weights: (batch, adapter) routing weights.
        rocs: (batch, adapter) how many ROCs a token may use of each adapter.
        scale: (batch,) factor on the whole output.
        whole: every adapter is used whole or not at all, so that there is nothing to choose for a token.
    """

    ids: tuple[int, ...]
    ranks: Int[Tensor, "*batch adapter"]
    weights: Float[Tensor, "batch adapter"]
    rocs: Int[Tensor, "batch adapter"]
    scale: Float[Tensor, " batch"]
    whole: bool = False

    def take(self, rows: Sequence[int]) -> Plan:
        """The plan of some of its rows, over the same adapters."""
        index = list(rows)
        return replace(self, weights=self.weights[index], rocs=self.rocs[index], scale=self.scale[index])


@dataclass(frozen=True)
class Choice:
    """One adapter's part in an answer.

    Attributes:
        name: the adapter.
        score: how well it fits the prompt.
        weight: its routing weight.
        rocs: the ROCs that each token used of it.
        rank: the ROCs that it has.
        seen: whether its score says that it knows such prompts; None where no scores were compared.
    """

    name: str
    score: float
    weight: float
    rocs: int
    rank: int
    seen: bool | None


@dataclass(frozen=True)
class Completion:
    """An answer, and why it came out as it did.

    Attributes:
        text: the generated text.
        finish_reason: "stop" (end token or stop string), "length", or "abstain" (no adapter fits, see `note`).
        choices: the adapters used, best first; empty when the base model answered alone.
        method: the method's name.
        prompt_tokens, completion_tokens: lengths.
        note: what a user should know, e.g. that the pool is empty; else "".
    """

    text: str
    finish_reason: str
    choices: tuple[Choice, ...] = field(default=())
    method: str = "base"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    note: str = ""

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
