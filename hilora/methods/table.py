"""The method table: the name in its paper -> router, allocation, composer. Read this first.

method        router               ROCs of a token                    composer
hilora        Gaussian, Eq. 4      gamma of the candidates' ROCs      top-o of each adapter
hilora-gs     Gaussian, Eq. 4      all of the candidates'             sum
hilora-roc    everyone             k of the pool                      top-k over the pool
hilora-plus   calibrated posterior gamma of the candidates', canonical top-o of each adapter, weighted by posterior
selection     cosine, top 1        all of the adapter's               the adapter
mixture       cosine, top k        all of k adapters                  outputs averaged
fusion        cosine, top k        all of k adapters                  parameters averaged, for each row
ensemble      everyone             all of the pool                    outputs averaged
arrow         everyone             all of k adapters                  softmax over prototypes, token by token
merged        everyone             one merged adapter's               parameters averaged, once
lego          everyone             k clusters of the pool's           clusters summed
adapter-soup  cosine, by domain    one merged adapter's               parameters averaged, for each domain
ramole        cosine, top k        all of k adapters                  RouterLoRA's attention, token by token
phatgoose     everyone             all of k adapters                  softmax over gate vectors, token by token
moe-soft      experts              all of the experts'                softmax of a dense layer
moe-top1      experts              all of one expert's                the same, the largest
moe-top3      experts              all of three experts'              the same, the three largest
smear         experts              all of the experts'                parameters averaged by that softmax
lorahub       20 drawn adapters    one merged adapter's               parameters summed, weighted
logo          a pass of the base   all of k adapters                  outputs, weighted by their size at one site
spectr        everyone             all of k adapters                  the k longest outputs averaged, token by token
lag           everyone             all of one adapter's               the longest of 20 by prototypes, token by token
lorauter      cosine, top k        all of k adapters                  outputs, weighted by softmax of cosines
oracle        the label            all of the adapter's               the adapter
base          -                    -                                  -

From `ramole` to `lorahub` something is trained first: `hilora train`.
"Retriever" in HiLoRA's tables is `mixture` with k = 3; "LoRA" and "perfect selection" are `oracle`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hilora.compose.arrow import Arrow
from hilora.compose.fusion import Fused
from hilora.compose.pool_rocs import PoolTopRocs
from hilora.compose.rocs import TopRocs
from hilora.compose.weighted import Weighted
from hilora.errors import InputError, UnknownNameError
from hilora.merge.average import Average
from hilora.merge.lego import Lego
from hilora.methods import rivals, trained
from hilora.methods.method import Method
from hilora.pool.derived import Canonical, Merged
from hilora.route.allocate import draw_capped
from hilora.route.expected import share_expected
from hilora.route.oracle import Oracle
from hilora.route.posterior import FALLBACKS, Posterior
from hilora.route.retriever import Retriever, Soup
from hilora.route.tied import gaussian_router
from hilora.route.uniform import Everyone

ALLOCATIONS = {"sampled": draw_capped, "expected": share_expected}


def hilora(
    *,
    gamma: float = 0.4,
    k: int = 3,
    covariance: str = "own",
    candidates: str = "sign",
    ridge: float | None = None,
    shrinkage: float = 0.1,
    allocation: str = "sampled",
    criterion: str = "value",
    normalise: bool = True,
    search: str = "exact",
) -> Method:
    """HiLoRA (arXiv 2510.12266): Gaussian candidates, a sampled budget of ROCs, top-o ROCs per token."""
    _check_gamma(gamma)
    if allocation not in ALLOCATIONS:
        raise UnknownNameError("allocation", allocation, ALLOCATIONS)
    router = gaussian_router(covariance, candidates, k, ridge, shrinkage, search)
    return Method("hilora", router, TopRocs(criterion), gamma, ALLOCATIONS[allocation], normalise)


def hilora_gs(
    *,
    k: int = 3,
    covariance: str = "own",
    candidates: str = "sign",
    ridge: float | None = None,
    shrinkage: float = 0.1,
    normalise: bool = True,
    search: str = "exact",
) -> Method:
    """HiLoRA-GS: the sequence level alone; every ROC of the candidates is active."""
    router = gaussian_router(covariance, candidates, k, ridge, shrinkage, search)
    return Method("hilora-gs", router, TopRocs(), normalise=normalise)


def hilora_roc(*, k: int = 24, criterion: str = "value", normalise: bool = True) -> Method:
    """HiLoRA-ROC: the token level alone; each token's k strongest ROCs of the whole pool."""
    return Method("hilora-roc", Everyone(), PoolTopRocs(k, criterion), normalise=normalise, active=k)


def hilora_plus(
    *,
    gamma: float = 1.0,
    k: int = 3,
    floor: float = 0.1,
    terms: bool = True,
    candidates: str = "top",
    alpha: float = 0.05,
    fallback: str = "broad",
    criterion: str = "contribution",
) -> Method:
    """HiLoRA with a calibrated posterior: likely adapters weighted by probability, canonical ROCs by contribution.

    `fallback` says what becomes of prompts that no adapter knows: "broad" (eight adapters instead of k, at a higher
    temperature), "base" (the base model answers), "abstain" (no answer), "none" (as any other prompt). One adapter
    alone serves every prompt; one without stored terms is judged by meaning; an untuned pool is calibrated first.
    """
    _check_gamma(gamma)
    if fallback not in (*FALLBACKS, "abstain"):
        raise UnknownNameError("fallback", fallback, (*FALLBACKS, "abstain"))
    abstain = fallback == "abstain"
    router = Posterior(k, floor, terms, candidates, alpha, "base" if abstain else fallback)
    gate = TopRocs(criterion, weighted=True)
    return Method("hilora-plus", router, gate, gamma, share_expected, make=Canonical, abstain=abstain)


def selection() -> Method:
    """Selection (RAMoLE, arXiv 2406.16989): the adapter whose samples are nearest by cosine, whole."""
    return Method("selection", Retriever(1), Weighted())


def mixture(*, k: int = 3) -> Method:
    """Mixture (RAMoLE; "Retriever" in HiLoRA's tables): the outputs of the k nearest adapters, averaged."""
    return Method("mixture", Retriever(k), Weighted())


def fusion(*, k: int = 3) -> Method:
    """Fusion (RAMoLE): the parameters of the k nearest adapters, A and B averaged separately, for each prompt."""
    return Method("fusion", Retriever(k), Fused())


def ensemble() -> Method:
    """Ensemble: the outputs of all adapters, averaged at every site."""
    return Method("ensemble", Everyone(), Weighted())


def arrow(*, k: int = 3, temperature: float = 1.0) -> Method:
    """Arrow (Ostapenko et al. 2024): each token's k adapters by their first right singular vectors."""
    return Method("arrow", Everyone(), Arrow(k, temperature), sparse=k, make=Canonical)


def merged() -> Method:
    """Merged (Ostapenko et al. 2023): one adapter with the pool's mean A and mean B."""
    return Method("merged", Everyone(), Weighted(), make=partial(Merged, Average()))


def lego(*, k: int = 24) -> Method:
    """LEGO (Zhao et al. 2025): the pool's ROCs clustered into k, merged, for all prompts."""
    return Method("lego", Everyone(), Weighted(), make=partial(Merged, Lego(k)))


def adapter_soup(*, k: int = 3) -> Method:
    """AdapterSoup (Chronopoulou et al. 2023): the mean A and B of the k adapters nearest to all prompts of a call."""
    return Method("adapter-soup", Soup(k), Weighted(), make=partial(Merged, Average()))


def ramole(*, k: int = 3, router: str = "router") -> Method:
    """RAMoLE (arXiv 2406.16989): the k nearest adapters, weighed by a trained RouterLoRA, token by token."""
    return Method("ramole", Retriever(k), complete=trained.router_lora(router), part=router)


def phatgoose(*, k: int = 2) -> Method:
    """Phatgoose (Muqeeth et al. 2024): each token's k adapters by gate vectors trained for each adapter."""
    return Method("phatgoose", Everyone(), sparse=k, complete=trained.phatgoose(k), part="phatgoose")


def moe_soft() -> Method:
    """Soft mixture of experts (RAMoLE section V): one adapter per cluster, weighed by a trained dense layer."""
    return Method("moe-soft", Everyone(), complete=trained.moe("moe-soft"), part="moe-soft")


def moe_top1() -> Method:
    """Mixture of experts with the strongest expert of each token, trained with Gumbel noise."""
    return Method("moe-top1", Everyone(), sparse=1, complete=trained.moe("moe-top1", 1), part="moe-top1")


def moe_top3() -> Method:
    """Mixture of experts with each token's three strongest experts, trained with Gumbel noise."""
    return Method("moe-top3", Everyone(), sparse=3, complete=trained.moe("moe-top3", 3), part="moe-top3")


def smear() -> Method:
    """SMEAR (Muqeeth et al. 2023): the experts' parameters, averaged by a trained dense layer."""
    return Method("smear", Everyone(), complete=trained.moe("smear", fused=True), part="smear")


def lorahub() -> Method:
    """LoRAHub (Huang et al. 2023): 20 random adapters' parameters, summed with weights found without gradients."""
    return Method("lorahub", Everyone(), Weighted(), complete=trained.lorahub, part="lorahub")


def oracle() -> Method:
    """The adapter that the label names, whole: the papers' column LoRA, or perfect selection."""
    return Method("oracle", Oracle(), TopRocs())


def base() -> Method:
    """The base model without adapters."""
    return Method("base")


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma <= 1:
        raise InputError(f"gamma is a share of the candidates' ROCs: got {gamma}, expected 0 < gamma <= 1.")


METHODS: dict[str, Callable[..., Method]] = {
    "hilora": hilora,
    "hilora-gs": hilora_gs,
    "hilora-roc": hilora_roc,
    "hilora-plus": hilora_plus,
    "selection": selection,
    "mixture": mixture,
    "fusion": fusion,
    "ensemble": ensemble,
    "arrow": arrow,
    "merged": merged,
    "lego": lego,
    "adapter-soup": adapter_soup,
    "ramole": ramole,
    "phatgoose": phatgoose,
    "moe-soft": moe_soft,
    "moe-top1": moe_top1,
    "moe-top3": moe_top3,
    "smear": smear,
    "lorahub": lorahub,
    "logo": rivals.logo,
    "spectr": rivals.spectr,
    "lag": rivals.lag,
    "lorauter": rivals.lorauter,
    "oracle": oracle,
    "base": base,
}
"""Name in its paper -> what makes the method of its options; `hilora methods` prints it."""
