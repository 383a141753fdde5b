"""Methods of other papers that are as recent as HiLoRA, and like it train nothing: each in its paper's terms.

method    arXiv        router                  ROCs of a token            composer
logo      2511.07129   a pass of the base      all of k adapters          outputs, weighted by their size there
spectr    2504.03454   everyone                all of k adapters          the longest outputs, token by token
lag       2507.05346   everyone                all of one adapter's       Arrow's filter, then the longest
lorauter  2601.21795   cosine, top k           all of k adapters          outputs, weighted by softmax of cosines
"""

from __future__ import annotations

from hilora.compose.lag import Lag
from hilora.compose.spectr import Spectr
from hilora.compose.weighted import Weighted
from hilora.methods.method import Method
from hilora.pool.derived import Canonical
from hilora.route.logo import Logo
from hilora.route.lorauter import Lorauter
from hilora.route.uniform import Everyone


def logo(*, k: int = 20, signal: str = "norm", site: str = "", reads: str = "block") -> Method:
    """LoGo (Lee et al. 2025): a pass of the base over the prompt asks all adapters at one site; k mixed by share."""
    return Method("logo", Logo(k, signal, site, reads), Weighted(), needs_base=True)


def spectr(
    *, k: int = 4, score: str = "output", weights: str = "equal", temperature: float = 1.0, fuse: bool = False
) -> Method:
    """SpectR (Fleshman et al. 2025) in SEQR's form: each token's k adapters by the length of their outputs."""
    return Method("spectr", Everyone(), Spectr(k, score, weights, temperature, fuse), sparse=k, make=Canonical)


def lag(
    *, candidates: int = 20, k: int = 1, score: str = "basis", weights: str = "equal", temperature: float = 1.0
) -> Method:
    """LAG (Fleshman et al. 2025): of each token's candidates by Arrow, the adapter with the largest SpectR score."""
    return Method("lag", Everyone(), Lag(candidates, k, score, weights, temperature), sparse=k, make=Canonical)


def lorauter(*, k: int = 3, temperature: float = 0.2, samples: int = 200) -> Method:
    """LoRAuter (Dhasade et al. 2026): the k adapters whose tasks are nearest, outputs weighted by similarity."""
    return Method("lorauter", Lorauter(k, temperature=temperature, samples=samples), Weighted())
