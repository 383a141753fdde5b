"""Laws of the figures: numbers are those of slow loops, pictures are files, and no text does more than be read."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from sklearn import decomposition, metrics
from torch import Tensor
from typer.testing import CliRunner

from hilora.analyse import figures, heatmaps, look
from hilora.analyse.activation import Recorder, record
from hilora.analyse.explain import Explanation, explain, explain_answer
from hilora.analyse.observations import observe, table
from hilora.analyse.page import render
from hilora.analyse.retrieval import against_k, against_samples, read_routing
from hilora.analyse.rocs import (
    FORMS,
    PARTS,
    SIGNS,
    canonical_at,
    choose_sites,
    directions,
    overlap,
    principal_axes,
    redundancy,
    silhouettes,
    stack,
    two_groups,
)
from hilora.analyse.selection import count_selected, read_results
from hilora.analyse.similarity import against_samples as against_held_out
from hilora.analyse.weights import weights_by_site
from hilora.base.modules import placements
from hilora.cli.app import app
from hilora.compose.stack import stack_sites
from hilora.engine.attach import attach
from hilora.engine.generate import HiLoRA
from hilora.errors import HiloraError, InputError, UnknownNameError
from hilora.methods.lookup import get_method
from hilora.planner import Planner
from hilora.route.crossfit import FOLDS
from hilora.route.gaussian import OwnGaussian
from hilora.types import Choice, Factors

SITE = "model.layers.0.self_attn.v_proj"
HOSTILE = '<script>alert("1")</script> <img src=x onerror="alert(2)"> & \'quoted\' http://example.org $x_1$ ${body}'


def random_adapters(ranks: tuple[int, ...] = (4, 3, 5), seed: int = 0, into: int = 12, out: int = 9) -> list[Factors]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            SITE: (
                torch.randn(rank, into, generator=generator, dtype=torch.float64),
                torch.randn(out, rank, generator=generator, dtype=torch.float64),
            )
        }
        for rank in ranks
    ]


def flipped(adapters: list[Factors], seed: int = 1) -> list[Factors]:
    """The same adapters with other signs of their ROCs."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for factors in adapters:
        down, up = factors[SITE]
        sign = torch.where(torch.rand(len(down), generator=generator) < 0.5, -1.0, 1.0).double()
        found.append({SITE: (down * sign[:, None], up * sign)})
    return found


def rewritten(adapters: list[Factors], seed: int = 1) -> list[Factors]:
    """The same adapters in another basis: (R A, B R^-1)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for factors in adapters:
        down, up = factors[SITE]
        basis = torch.randn(len(down), len(down), generator=generator, dtype=torch.float64) + 3 * torch.eye(len(down))
        found.append({SITE: (basis @ down, up @ torch.linalg.inv(basis))})
    return found


# --- the numbers of the observations ------------------------------------------------------------------


def test_silhouettes_are_those_of_scikit_learn() -> None:
    vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = torch.cdist(vectors, vectors).fill_diagonal_(0)
    labels = torch.stack([torch.arange(20) % 4, torch.arange(20) // 19 + torch.arange(20) // 7, torch.arange(20) % 2])
    found = silhouettes(distance, labels)
    for row, own in zip(found, labels, strict=True):  # the second has a cluster of one, the last lacks numbers
        expected = metrics.silhouette_samples(distance.numpy(), own.numpy(), metric="precomputed")
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-12)


def test_directions_are_compared_pair_by_pair() -> None:
    of = stack(random_adapters(), SITE, "up")
    groups: dict[str, list[float]] = {"within": [], "between": [], "same_place": []}
    squares = 0.0
    for i in range(12):
        for j in range(12):
            cosine = float(of.units[i] @ of.units[j])
            squares += cosine**2
            if i != j and of.owner[i] == of.owner[j]:
                groups["within"].append(abs(cosine))
            if of.owner[i] != of.owner[j]:
                groups["between"].append(abs(cosine))
                if of.place[i] == of.place[j]:
                    groups["same_place"].append(abs(cosine))
    found = directions(of)
    for name, values in groups.items():
        assert found[name] == pytest.approx(np.mean(values))
    assert found["dimensions"] == pytest.approx(144 / squares)
    drawn = torch.randn(20000, 9, generator=torch.Generator().manual_seed(0))
    assert found["random"] == pytest.approx(float((drawn[:, 0] / drawn.norm(dim=1)).abs().mean()), rel=0.03)


def test_overlap_and_redundancy_are_those_of_the_whole_matrices() -> None:
    adapters = random_adapters()
    canonicals = canonical_at(adapters, SITE)
    found, whole = overlap(canonicals, SITE), [up @ down for down, up in (own[SITE] for own in adapters)]
    for i, one in enumerate(whole):
        span = torch.linalg.qr(adapters[i][SITE][1])[0]
        for j, other in enumerate(whole):
            assert float(found["reach"][i, j]) == pytest.approx(float(((span.T @ other).norm() / other.norm()) ** 2))
            cosine = float((one * other).sum() / (one.norm() * other.norm()))
            assert float(found["cosine"][i, j]) == pytest.approx(cosine)
            assert float(found["chance"][i, j]) == pytest.approx(len(adapters[i][SITE][0]) / 9)
    effective, shares = [], []
    for delta, rank in zip(whole, (4, 3, 5), strict=True):
        energy = torch.linalg.svdvals(delta)[:rank] ** 2
        effective.append(float(energy.sum() ** 2 / (energy**2).sum()))
        needed = next(k for k in range(1, rank + 1) if energy[:k].sum() >= 0.9 * energy.sum())
        shares.append(needed / rank)
    told = redundancy(canonicals, SITE)
    assert told["effective_rank"] == pytest.approx(np.mean(effective))
    assert told["for_90_percent"] == pytest.approx(np.mean(shares))
    assert told["rank"] == 4


def numbers(adapters: list[Factors]) -> dict[str, Any]:
    return observe({str(i): own for i, own in enumerate(adapters)}, [SITE], permutations=5)


def test_signs_of_rocs_change_no_sign_free_number() -> None:
    adapters = random_adapters((4, 5, 6))
    one, other = numbers(adapters), numbers(flipped(adapters))
    for form in FORMS:
        for part in PARTS:
            assert one["clusters"][form][part]["sign_free"] == other["clusters"][form][part]["sign_free"]
            for name in ("within", "between", "same_place", "dimensions"):
                assert one["directions"][form][part][name] == other["directions"][form][part][name]
    for part in PARTS:
        assert one["groups"][part]["sign_free"] == other["groups"][part]["sign_free"]
    assert one["clusters"]["raw"]["up"]["as_stored"] != other["clusters"]["raw"]["up"]["as_stored"]
    points, shares = principal_axes(stack(adapters, SITE, "up"))
    mirrored, same = principal_axes(stack(flipped(adapters), SITE, "up"))
    torch.testing.assert_close(points.abs(), mirrored.abs())
    torch.testing.assert_close(shares, same)


def test_how_an_adapter_is_written_changes_no_canonical_number() -> None:
    adapters = random_adapters((4, 5, 6))
    one, other = numbers(adapters), numbers(rewritten(adapters))
    assert one["clusters"]["raw"] != other["clusters"]["raw"]
    for name in ("redundancy", "overlap"):
        assert one[name] == other[name]
    assert one["clusters"]["canonical"] == other["clusters"]["canonical"]
    assert one["directions"]["canonical"]["up"]["within"] == 0


def test_clusters_are_found_where_they_are_and_only_there() -> None:
    generator = torch.Generator().manual_seed(3)
    adapters = random_adapters((6, 6, 6), into=30, out=40)
    for factors in adapters:  # all up vectors of an adapter along one direction, with random signs
        down, up = factors[SITE]
        main = torch.randn(40, 1, generator=generator, dtype=torch.float64)
        sign = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)
        factors[SITE] = (down, 3 * main * sign + up)
    found = observe({str(i): own for i, own in enumerate(adapters)}, [SITE], permutations=50)
    raw, groups = found["clusters"]["raw"], found["groups"]
    assert raw["up"]["sign_free"]["silhouette"] > 0.7
    assert raw["up"]["sign_free"]["p"] == pytest.approx(1 / 51, abs=1e-4)
    assert raw["up"]["as_stored"]["silhouette"] < 0.2  # to the eye, each adapter is two clusters
    assert groups["up"]["as_stored"] > 0.7
    assert groups["up"]["sign_free"] < 0.3
    assert abs(raw["down"]["sign_free"]["silhouette"] - raw["down"]["sign_free"]["permuted"]) < 0.1
    heading, rows = table(found)
    assert {len(row) for row in rows} == {len(heading)}


def test_one_tight_group_and_stragglers_are_not_two_groups() -> None:
    units = torch.nn.functional.normalize(torch.eye(8, 20, dtype=torch.float64), dim=1)
    units[2:] = torch.nn.functional.normalize(units[2] + 0.1 * units[2:], dim=1)
    assert two_groups(units, "as_stored") < 0.3
    twice = torch.cat([units[2:5], -units[5:]])
    assert two_groups(twice, "as_stored") > 0.9


def test_axes_are_those_of_the_rocs_and_their_mirror_images() -> None:
    of = stack(random_adapters(), SITE, "down")
    scaled = (of.units * of.size[:, None]).numpy()
    pca = decomposition.PCA(2).fit(np.concatenate([scaled, -scaled]))
    points, shares = principal_axes(of)
    np.testing.assert_allclose(points.abs().numpy(), np.abs(of.units.numpy() @ pca.components_.T), atol=1e-9)
    np.testing.assert_allclose(shares.numpy(), pca.explained_variance_ratio_, atol=1e-9)


def test_sites_are_chosen_by_how_they_end_layer_by_layer() -> None:
    known = [f"model.layers.{i}.self_attn.{module}" for i in range(12) for module in ("v_proj", "q_proj")]
    found = choose_sites(known, ["q_proj", "layers.3.self_attn.q_proj"])
    assert found == [f"model.layers.{i}.self_attn.q_proj" for i in range(12)]
    with pytest.raises(UnknownNameError, match="Did you mean 'q_proj'"):
        choose_sites(known, ["q_prj"])


# --- activations --------------------------------------------------------------------------------------

PROMPT = "abab aaa zzy"


@pytest.fixture(scope="module")
def llama(shared_pool: Any) -> Any:
    return shared_pool("llama")


@pytest.fixture
def router(llama: Any, tokenizer: Any, embedder: Any) -> Callable[..., HiLoRA]:
    def build(method: str, **options: Any) -> HiLoRA:
        return HiLoRA(llama[0], tokenizer, Planner(llama[1], get_method(method, **options), embedder))

    return build


@pytest.mark.parametrize(("method", "options"), [("hilora", {"candidates": "top", "k": 3}), ("hilora-plus", {})])
def test_each_token_uses_as_many_rocs_of_each_adapter_as_the_plan_says(
    method: str, options: dict[str, Any], router: Callable[..., HiLoRA]
) -> None:
    built = router(method, **options)
    found = record(built, PROMPT, max_new_tokens=5, seed=3)
    (answer,) = built.generate([PROMPT], max_new_tokens=5, seed=3)
    assert found.answer == answer.text
    assert len(found.tokens) == answer.prompt_tokens + answer.completion_tokens
    assert "".join(found.tokens[: found.num_prompt]) == PROMPT
    assert dict(zip(found.names, found.plan.rocs[0].tolist(), strict=True)) == answer.rocs
    for site in found.used:
        counts = found.counts([site])
        assert counts.shape == (len(found.tokens), len(found.names))
        read = [i for i, token in enumerate(found.tokens) if token != "<pad>"]  # that is all 0
        assert len(read) > found.num_prompt
        assert counts[read].eq(found.plan.rocs[0][None]).all(), site
    assert found.used_at(list(found.used)).shape[1] == int(found.plan.ranks.sum())
    torch.testing.assert_close(found.shares().sum(1), torch.ones(len(found.tokens)))


def test_the_rocs_that_count_as_used_are_the_strongest_of_the_whole_pool(router: Callable[..., HiLoRA]) -> None:
    built = router("hilora-roc", k=5)
    found = record(built, PROMPT, max_new_tokens=3)
    seen: dict[str, Tensor] = {}
    handles = [
        built.model.get_submodule(site).register_forward_pre_hook(
            lambda _, inputs, site=site: seen.__setitem__(site, inputs[0][0])
        )
        for site in found.used
    ]
    entries = [built.planner.pool.entries[i] for i in found.plan.ids]
    factors = [built.planner.pool.factors(entry.hash) for entry in entries]
    sites = stack_sites(factors, placements(built.model))
    ids = [3 + ord(c) - 32 for c in "".join(found.tokens)]
    with attach(built.model, sites, found.plan, built.planner.method.gate), torch.inference_mode():  # type: ignore[arg-type]
        built.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    for site, inputs in seen.items():
        down = torch.cat([own[site][0] for own in factors]).to(inputs.dtype)
        for token, x in enumerate(inputs):
            strongest = (down @ x).topk(5).indices
            assert sorted(found.used[site][token].nonzero()[:, 0].tolist()) == sorted(strongest.tolist())


@pytest.mark.parametrize("method", ["hilora", "hilora-roc", "hilora-plus", "mixture", "fusion", "arrow"])
def test_looking_at_a_gate_changes_nothing(method: str, router: Callable[..., HiLoRA]) -> None:
    built = router(method)
    routed = built.planner.route([PROMPT])
    plan, gate = built.planner.plan(routed, [0]), built.planner.method.gate
    assert gate is not None
    factors = [routed.source.factors(routed.source.entries[i].hash) for i in plan.ids]
    sites = stack_sites(factors, placements(built.model))
    ids = torch.tensor([[5, 17, 40, 41, 60]])
    logits = []
    for composer in (gate, Recorder(gate)):
        with attach(built.model, sites, plan, composer), torch.inference_mode():
            logits.append(built.model(input_ids=ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-12, atol=1e-12)


def test_what_has_no_rocs_is_refused(router: Callable[..., HiLoRA]) -> None:
    with pytest.raises(InputError, match="method 'base' uses no adapter"):
        record(router("base"), PROMPT)
    with pytest.raises(InputError, match="no adapter is allowed"):
        record(router("hilora"), PROMPT, allow=["alpha"], deny=["alpha"])


# --- selections, retrieval, similarity ----------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines: list[dict[str, Any]] = [{"setup": "x"}, {"item": "a/0", "task": "a", "cluster": "c", "metrics": []}]
    for i in range(9):
        for setting, seen in (("iid", True), ("within", i % 2 == 0)):
            line = {"method": "hilora", "id": f"a/{i}", "setting": setting, "split": setting, "seen": seen}
            lines.append(line | {"adapters": 1 + i % 3, "rocs": 2 * i})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_selections_are_counted_for_seen_and_unseen_rows_apart(rows: Path) -> None:
    found = count_selected(read_results([rows]), "hilora")
    assert [(label, group["rows"], group["seen"]) for label, group in found.items()] == [
        ("iid, seen", 9, True),
        ("within, seen", 5, True),
        ("within, unseen", 4, False),
    ]
    odd = [1, 3, 5, 7]
    assert found["within, unseen"]["ROCs"] == {"mean": 8.0, "counts": {str(2 * i): 1 for i in odd}}
    assert found["within, unseen"]["adapters"]["mean"] == np.mean([1 + i % 3 for i in odd])
    assert list(count_selected(read_results([rows]), "hilora", "iid")) == ["iid, seen"]
    with pytest.raises(UnknownNameError, match="Did you mean 'hilora'"):
        count_selected(read_results([rows]), "hilroa")
    with pytest.raises(UnknownNameError, match="'ood'"):
        count_selected(read_results([rows]), "hilora", "ood")


@pytest.mark.parametrize("text", ["{broken\n", '{"method": "hilora"}\n', "[1]\n", ""])
def test_what_is_no_results_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text(text)
    with pytest.raises(InputError, match="hilora evaluate tasks"):
        read_results([tmp_path / "other.jsonl"])
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match=r"other\.json is no result of routing"):
        read_routing(tmp_path / "other.json")


def routing_file(path: Path, *shares: float) -> Path:
    tops = {f"top{k}": share for k, share in zip((1, 3, 5), shares, strict=True)}
    intervals = {top: [share - 0.1, share + 0.1] for top, share in tops.items()}
    path.write_text(json.dumps({"setup": {}, "methods": {"own": {**tops, "n": 7, "intervals": intervals}}}))
    return path


def test_curves_are_the_shares_of_the_files(tmp_path: Path) -> None:
    files = [routing_file(tmp_path / "ten.json", 0.5, 0.7, 0.8), routing_file(tmp_path / "five.json", 0.3, 0.4, 0.6)]
    read = {path: read_routing(path) for path in files}
    over_k = against_k(read)
    assert over_k["curves"]["ten: own"]["x"] == [1, 3, 5]
    assert over_k["curves"]["five: own"]["y"] == pytest.approx([30, 40, 60])
    over_samples = against_samples(read, ["10", "5"], 3)
    curve = over_samples["curves"]["own"]
    assert (curve["x"], curve["y"], curve["low"]) == ([5, 10], pytest.approx([40, 70]), pytest.approx([30, 60]))
    with pytest.raises(InputError, match="1 numbers for 2 files"):
        against_samples(read, ["10"], 3)
    with pytest.raises(InputError, match="whole numbers"):
        against_samples(read, ["ten", "5"], 3)
    with pytest.raises(InputError, match="no top 4"):
        against_samples(read, ["10", "5"], 4)
    with pytest.raises(UnknownNameError):
        against_k(read, ["tied"])


def test_samples_are_scored_by_statistics_that_have_not_seen_them(llama: Any) -> None:
    pool = llama[1]
    known = pool.samples()
    found = against_held_out(pool.names, known, pool.ridge)
    order = sorted(range(len(pool)), key=lambda i: pool.names[i])
    assert [name for name, _ in found["tasks"]] == sorted(pool.names)
    own, cosine = [[], []], [[], []]  # type: ignore[var-annotated]  # of the first adapter's samples
    vectors = [features.embeddings for features in known]
    for fold in range(FOLDS):
        kept = [rows[torch.arange(len(rows)) % FOLDS != fold] for rows in vectors]
        held = vectors[order[0]][torch.arange(len(vectors[order[0]])) % FOLDS == fold]
        scores = OwnGaussian(pool.ridge).fit(kept).score(held)
        for place, adapter in enumerate(order[:2]):
            own[place] += scores[:, adapter].tolist()
            mean = kept[adapter].mean(0)
            cosine[place] += [float(torch.cosine_similarity(row, mean, dim=0)) for row in held]
    assert found["own"][0][:2] == pytest.approx([np.mean(values) for values in own], abs=2e-3)
    assert found["cosine"][0][:2] == pytest.approx([np.mean(values) for values in cosine], abs=2e-3)


# --- explanations -------------------------------------------------------------------------------------


def test_runners_up_are_the_next_best_by_score(llama: Any, embedder: Any) -> None:
    pool = llama[1]
    planner = Planner(pool, get_method("hilora", candidates="top", k=1), embedder)
    found = explain(planner, PROMPT)
    scores = (
        OwnGaussian(pool.ridge).fit([features.embeddings for features in pool.samples()]).score(embedder([PROMPT]))
    )
    order = scores[0].argsort(descending=True).tolist()
    assert [choice.name for choice in (*found.choices, *found.runners_up)] == [pool.names[i] for i in order]
    assert [choice.score for choice in found.runners_up] == pytest.approx(scores[0][order[1:]].tolist(), abs=1e-6)
    assert [choice.name for choice in explain(planner, PROMPT, deny=[pool.names[order[1]]]).runners_up] == [
        pool.names[i] for i in order[2:]
    ]
    assert len(explain(planner, PROMPT, runners_up=2).runners_up) == 2
    everyone = explain(Planner(pool, get_method("ensemble"), embedder), PROMPT)
    assert (everyone.score, everyone.runners_up, len(everyone.choices)) == (None, (), 4)


class Tags(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_hostile_texts_and_does_nothing_else() -> None:
    choices = (Choice(HOSTILE, 1.5, 0.75, 3, 4, True), Choice("b", 0.5, 0.25, 1, 4, False))
    kind = explain_kind()
    found = Explanation(
        HOSTILE, "hilora", "what", kind, choices, (Choice(HOSTILE, -1.0, 1.0, 1, 4, None),), 3, None, 0.0, HOSTILE
    )
    page = Tags(render(Explanation(**{**vars(found), "answer": HOSTILE})))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "a", "base", "form"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes), tag
    assert page.text.count(HOSTILE) == 5
    policies = [attributes for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes]
    assert policies[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme: dark" in page.text
    assert "2.50 lower" not in page.text
    assert "1.50 lower" in page.text  # than the last one chosen


def css(page: str) -> list[tuple[str, str, dict[str, str]]]:
    """(condition, selector, declarations) of the page's rules, in their order."""
    found, condition = [], ""
    parts = r"@media \((?P<on>[^)]*)\) \{|(?P<who>[^{}@]+)\{(?P<what>[^{}]*)\}|\}"
    for part in re.finditer(parts, page.split("<style>")[1].split("</style>", maxsplit=1)[0]):
        if part["who"] is None:
            condition = part["on"] or ""
            continue
        declared = dict(each.strip().split(": ", 1) for each in part["what"].split(";") if each.strip())
        found += [(condition, one.strip(), declared) for one in part["who"].split(",")]
    return found


def test_the_page_fits_narrow_and_wide_screens_light_and_dark(router: Callable[..., HiLoRA]) -> None:
    page = render(explain_answer(router("hilora", candidates="top", k=2), "abab zzy", max_new_tokens=4))
    rules = css(page)

    def said(selector: str, name: str, condition: str = "") -> str | None:
        return next((d[name] for c, s, d in rules[::-1] if (c, s) == (condition, selector) and name in d), None)

    assert 'name="viewport" content="width=device-width' in page
    assert said("body", "max-width") == "54rem"  # lines stay short where there is room
    assert said("body", "overflow-wrap") == "anywhere"
    # what cannot wrap moves inside its own box
    assert said(".scroll", "overflow-x") == "auto"
    assert page.count("<table>") == page.count('<div class="scroll"><table>') == 2
    assert said("pre", "white-space") == said(".tokens", "white-space") == "pre-wrap"
    # names stay whole, since a cell is as wide as its longest word; headings wrap; bars go where there is no room
    assert said("td", "overflow-wrap") == said("th", "overflow-wrap") == "break-word"
    assert [selector for _, selector, d in rules if d.get("white-space") == "nowrap"] == ["td.n"]
    narrow = "max-width: 40rem"
    assert said(".bar", "display", narrow) == "none"
    # there, a name has a line of its own, so that its numbers need not be moved to
    assert (said("tr", "display", narrow), said("tr", "flex-wrap", narrow)) == ("flex", "wrap")
    assert said("td", "flex", narrow) == said("th", "flex", narrow) == "1 1 0"
    assert said("td:first-child", "flex-basis", narrow) == said("th:first-child", "flex-basis", narrow) == "100%"
    light, dark = (
        {name for c, s, d in rules if (c, s) == (on, ":root") for name in d}
        for on in ("", "prefers-color-scheme: dark")
    )
    assert said(":root", "color-scheme") == "light dark"
    assert light - {"color-scheme"} == dark
    assert set(re.findall(r"var\((--[a-z]+)\)", page)) == dark


def explain_kind() -> Any:
    from hilora.analyse.explain import score_kind

    return score_kind(get_method("hilora"))


def test_options_in_a_methods_summary_are_marked_and_nothing_else_of_it_is(router: Callable[..., HiLoRA]) -> None:
    found = explain_answer(router("hilora", candidates="top", k=2), "abab zzy", max_new_tokens=1)
    page = render(Explanation(**{**vars(found), "summary": "`k` of <b>many</b>, a ` alone"}))
    assert "<code>k</code> of &lt;b&gt;many&lt;/b&gt;, a ` alone" in page


def test_tokens_on_the_page_are_escaped_and_complete(router: Callable[..., HiLoRA]) -> None:
    prompt = '<b>abab</b> & "zzy" <script>x</script>'
    built = router("hilora", candidates="top", k=2)
    found = explain_answer(built, prompt, max_new_tokens=4)
    assert found.activation is not None
    page = Tags(render(found))
    assert sum(tag == "span" and "title" in attributes for tag, attributes in page.tags) == len(
        found.activation.tokens
    )
    assert not {tag for tag, _ in page.tags} & {"script", "b"}
    assert page.text.count(prompt) == 2  # as a whole, and token by token
    alone = explain_answer(router("hilora"), prompt, max_new_tokens=4, allow=["alpha"], deny=["alpha"])
    assert (alone.activation, alone.answer is None) == (None, False)
    assert "the base model answered alone" in render(alone)


# --- pictures -----------------------------------------------------------------------------------------


def draw_planes(adapters: list[Factors], out: Path) -> list[bytes]:
    kinds = {("raw", part): stack(adapters, SITE, part) for part in PARTS}
    kinds |= {("canonical", part): stack(canonical_at(adapters, SITE), SITE, part) for part in PARTS}
    names = ["$x_1$ <b>", "\u4f60\u597d\n", "c" * 90]  # as labels they are what they are
    return [path.read_bytes() for path in look.save(figures.roc_planes(kinds, names, SITE), out / "planes")]


def test_pictures_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    adapters = random_adapters((4, 5, 6))
    one = draw_planes(adapters, tmp_path)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):  # whatever a user's settings are
        assert draw_planes(adapters, tmp_path) == one
    assert one[0].startswith(b"\x89PNG")
    assert b"<svg" in one[1]
    assert b"<dc:date>" not in one[1]


def test_no_two_names_look_alike_and_too_many_are_refused() -> None:
    most = len(look.COLOURS) * len(look.MARKERS)
    found = look.looks([str(i) for i in range(most)])
    assert len({tuple(look.values()) for look in found}) == most
    with pytest.raises(InputError, match=f"{most + 1} names"):
        look.looks([str(i) for i in range(most + 1)])


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HiloraError, match=r"need matplotlib.*pip install"):
        look.need_matplotlib()


# --- commands -----------------------------------------------------------------------------------------


@pytest.fixture
def fake(llama: Any, tokenizer: Any, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model and the fake embedder wherever commands load one."""
    monkeypatch.setattr("hilora.base.embed.Embedder", lambda name="fake", **_: embedder)
    monkeypatch.setattr("hilora.engine.generate.load_base", lambda *_, **__: (llama[0], tokenizer))


def run(*args: Any) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def check_files(printed: str, count: int) -> list[Path]:
    files = [Path(line) for line in printed.splitlines() if line.endswith((".png", ".svg", ".json"))]
    assert len(files) == count
    assert all(path.stat().st_size > 300 for path in files)
    return files


def test_the_commands_write_their_figures(llama: Any, fake: None, rows: Path, tmp_path: Path, tiny: Any) -> None:
    out, pool = ["--out", tmp_path / "figures"], ["--pool", llama[1].path]
    printed = run("figures", "rocs", *pool, "--sites", "q_proj,v_proj", "--draw", 1, "--permutations", 3, *out)
    assert "up vectors cluster by adapter" in printed
    found = json.loads(check_files(printed, 7)[0].read_text())
    assert len(found["sites"]) == 4
    assert set(found["clusters"]["raw"]["up"]) == set(SIGNS)
    printed = run("figures", "activation", *pool, "--prompt", PROMPT, "--max-new-tokens", 3, "--seed", 1, *out)
    found = json.loads(check_files(printed, 5)[0].read_text())
    assert all(used == list(found["rocs_planned"].values()) for used in found["rocs_used"])
    check_files(run("figures", "selection", "--rows", rows, "--method", "hilora", *out), 3)
    prompts = [
        {"task": task, "cluster": task[0], "inputs": text} for task in tiny.tasks[:3] for text in tiny.texts(task, 3)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    printed = run("figures", "similarity", *pool, "--test", tmp_path / "test.jsonl", *out)
    found = json.loads(check_files(printed, 7)[0].read_text())
    assert [row.index(max(row)) for row in found["own"]] == [0, 1, 2]
    result = routing_file(tmp_path / "ten.json", 0.5, 0.7, 0.8)
    check_files(run("figures", "retrieval", "--json", result, *out), 2)
    check_files(run("figures", "retrieval", "--json", result, "--samples", "10", "--k", 3, *out), 2)
    refused = CliRunner().invoke(app, ["figures", "retrieval", "--json", str(result), "--k", "3"])
    assert "give --samples, too" in str(refused.exception)


def test_explain_writes_a_page(llama: Any, fake: None, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    assert str(page) in run("explain", "zzy <i> xyz", "--pool", llama[1].path, "--out", page)
    assert "zzy &lt;i&gt; xyz" in page.read_text()
    assert "<h2>Answer</h2>" not in page.read_text()
    common = ["explain", "zzy xyz", "--pool", llama[1].path, "--out", page, "--method", "hilora"]
    run(*common, "--generate", "--max-new-tokens", 3)
    first = page.read_text()
    assert "<h2>Answer</h2>" in first
    assert "does not say whether the prompt is of a kind" in first
    run(*common, "--generate", "--max-new-tokens", 3)
    assert page.read_text() == first


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["figures", "rocs"], "Which sites"),
        (["figures", "rocs", "--sites", "k_proj"], "Unknown site 'k_proj'"),
        (["figures", "rocs", "--sites", "v_proj", "--adapter", "alpha"], "two adapters"),
        (["figures", "rocs", "--sites", "v_proj", "--adapter", "alpah"], "Did you mean 'alpha'"),
        (["figures", "activation", "--prompt", "a", "--method", "hilroa"], "Did you mean 'hilora'"),
        (["figures", "activation", "--prompt", " "], "prompt is empty"),
        (["figures", "activation", "--prompt", "a", "--site", "k_proj"], "Unknown site 'k_proj'"),
        (["figures", "similarity", "--test", "nowhere.jsonl"], "Cannot read"),
        (["figures", "rocs", "--site", "v_proj", "--draw", "2"], "Leave --draw away"),
        (["explain", " "], "prompt is empty"),
        (["explain", "a", "--max-new-tokens", "3"], "--max-new-tokens is about the answer"),
        (["explain", "a", "--base", "other"], "Add --generate"),
        (["explain", "a", "--method", "oracle"], "needs the right adapter"),
    ],
)
def test_bad_input_is_refused_in_plain_words(
    args: list[str], message: str, llama: Any, fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*args, "--pool", str(llama[1].path)])
    assert isinstance(result.exception, HiloraError), result.output
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert list(tmp_path.iterdir()) == []


# --- weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mixture", "selection", "arrow", "ramole"])
def test_weights_of_all_adapters_add_up_at_each_site(
    method: str, shared_pool: Any, tokenizer: Any, embedder: Any, tiny: Any
) -> None:
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(model, pool, method, tokenizer=tokenizer, embedder=embedder)
    sites, names, found = weights_by_site(router, tiny.texts("alpha", 3))
    assert found.shape == (len(sites), len(names))
    assert set(names) <= set(pool.names)
    assert torch.allclose(found.sum(1), torch.tensor(1.0), atol=1e-4)
    if method == "mixture":  # each prompt retrieves three, with a third each
        assert torch.allclose(found * 9, (found * 9).round(), atol=1e-3)


def test_weights_of_the_base_model_are_refused(shared_pool: Any, tokenizer: Any, embedder: Any, tiny: Any) -> None:
    model, pool = shared_pool("llama")
    router = HiLoRA.from_pretrained(model, pool, "base", tokenizer=tokenizer, embedder=embedder)
    with pytest.raises(InputError, match="nothing to weigh"):
        weights_by_site(router, tiny.texts("alpha", 2))


def test_weights_are_drawn_with_a_panel_for_each_task(tmp_path: Path) -> None:
    sites = [f"model.layers.{i}.self_attn.v_proj" for i in range(4)]
    numbers = np.random.default_rng(0).random((4, 20))
    found = {
        "sites": sites,
        "tasks": {t: {"adapters": [f"a{i}" for i in range(20)], "weights": numbers} for t in "xy"},
    }
    found["tasks"]["x"]["adapters"][3] = "x"
    drawn = heatmaps.weights(found, "ramole")
    assert "ramole" in drawn.get_suptitle()
    files = look.save(drawn, tmp_path / "weights")
    assert all(file.stat().st_size > 1000 for file in files)
