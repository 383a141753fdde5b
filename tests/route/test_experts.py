"""The witnesses against loops written from their formulas, and the laws of their weighted product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hilora.route import experts
from hilora.route.crossfit import folds
from hilora.route.experts import WEIGHTS, Experts, calibrate, fit_weights, witness_scores
from hilora.route.features import Features, Terms, hash_terms, join
from hilora.route.tied import TiedGaussian
from hilora.route.witnesses import SHRINKAGE, SPELLING_SHRINKAGE, Meaning, Outline, Phrases, Spelling

DIM, BUCKETS, VOCABULARY = 5, 12, 40
GIVEN = {"meaning": 0.4, "spelling": 0.1, "phrases": 0.3, "outline": 0.2}
MARKS = 6
laws = settings(deadline=None, max_examples=40, derandomize=True)
shuffles = st.integers(2, 6).flatmap(lambda n: st.permutations(range(n)))
id_sets = st.sets(st.integers(0, 9), max_size=6)
id_pools = st.lists(st.lists(id_sets, min_size=1, max_size=4), min_size=1, max_size=4)


def with_phrases(rows: Sequence[set[int]]) -> Features:
    """Texts of which only the phrases are known."""
    phrases = torch.tensor([p for row in rows for p in sorted(row)], dtype=torch.int32)
    text = torch.tensor([i for i, row in enumerate(rows) for _ in row], dtype=torch.long)
    return Features(torch.zeros(len(rows), 1), Terms(torch.zeros(len(rows), 1, dtype=torch.int8), phrases, text))


def phrase_sets(texts: Features) -> list[set[int]]:
    assert texts.terms is not None
    terms = texts.terms
    return [set(terms.phrases[terms.text == row].tolist()) for row in range(len(texts))]


@dataclass
class Made:
    """Adapters that differ in all that is witnessed, with overlaps, so that no witness is always right."""

    generator: torch.Generator
    centres: Tensor
    rates: Tensor
    likely: Tensor

    def draw(self, adapter: int, count: int) -> Features:
        vectors = self.centres[adapter] + torch.randn(count, DIM, generator=self.generator)
        rates = self.rates[adapter].expand(count, -1)
        characters = 4 * torch.poisson(rates, generator=self.generator) - 4
        used = torch.rand(count, VOCABULARY, generator=self.generator) < self.likely[adapter]
        text, phrases = used.nonzero().unbind(1)
        answers = torch.randint(4, (count, MARKS), generator=self.generator)
        usual = torch.rand(count, MARKS, generator=self.generator) < 0.4
        marks = (100 * torch.arange(MARKS) + torch.where(usual, adapter % 4, answers)).int()
        terms = Terms(characters.clamp(-127, 127).to(torch.int8), phrases.to(torch.int32) * 7919, text, marks)
        return Features(vectors, terms)


def made(num_adapters: int, seed: int = 0) -> Made:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_adapters, DIM, generator=generator)
    rates = 0.5 + 2 * torch.rand(num_adapters, BUCKETS, generator=generator)
    likely = torch.rand(num_adapters, VOCABULARY, generator=generator).square() / 2
    return Made(generator, centres, rates, likely)


def pool_of(counts: Sequence[int], seed: int = 0) -> tuple[list[Features], Features]:
    """The samples of each adapter, and two queries of each."""
    maker = made(len(counts), seed)
    samples = [maker.draw(i, count) for i, count in enumerate(counts)]
    return samples, join([maker.draw(i, 2) for i in range(len(counts))])


def wordless(texts: Features) -> Features:
    return Features(texts.embeddings)


def shares(scores: Tensor) -> Tensor:
    return torch.softmax(scores.double(), dim=1)


def assert_alike(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


# phrases


def looped_phrases(samples: list[list[set[int]]], query: set[int], strength: float) -> list[float]:
    """sum over the query's phrases of log P(t | i) / p_t, as the formula has it."""
    number = sum(len(own) for own in samples)
    scores = []
    for own in samples:
        score = 0.0
        for t in query:
            total = sum(t in text for texts in samples for text in texts)
            if total:
                p_t = (total + 0.5) / (number + 1)  # the share, kept off 0 and 1
                n_it = sum(t in text for text in own)
                score += math.log((n_it + strength * p_t) / (len(own) + strength) / p_t)
        scores.append(score)
    return scores


@laws
@given(id_pools, st.lists(id_sets, min_size=1, max_size=4), st.sampled_from([0.3, 1.0, 5.0]))
def test_phrases_score_as_the_loop_does(
    samples: list[list[set[int]]], queries: list[set[int]], strength: float
) -> None:
    model = Phrases(strength).fit([with_phrases(own) for own in samples])
    scores = model.score(with_phrases(queries))
    assert scores.shape == (len(queries), len(samples))
    for row, query in enumerate(queries):
        assert scores[row].tolist() == pytest.approx(looped_phrases(samples, query, strength), rel=1e-4, abs=1e-5)


def test_phrases_of_real_texts_score_as_the_loop_does() -> None:
    texts = [["the red dog ran", "the red cat ran off", "a red dog"], ["is it so?", "is it not so?"], ["the dog", ""]]
    queries = ["is the red dog so?", "", "nothing known", "the red dog ran"]
    samples = [hash_features(own) for own in texts]
    scores = Phrases().fit(samples).score(hash_features(queries))
    for row, query in enumerate(phrase_sets(hash_features(queries))):
        want = looped_phrases([phrase_sets(own) for own in samples], query, 1.0)
        assert scores[row].tolist() == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert not scores[1:3].any()


def hash_features(texts: list[str], dim: int = DIM) -> Features:
    return Features(torch.zeros(len(texts), dim), hash_terms(texts))


@laws
@given(id_pools, id_sets, st.sets(st.integers(100, 2**31 - 1), max_size=5))
def test_phrases_that_no_sample_uses_say_nothing(
    samples: list[list[set[int]]], query: set[int], strange: set[int]
) -> None:
    model = Phrases().fit([with_phrases(own) for own in samples])
    scores = model.score(with_phrases([query, query | strange, strange]))
    assert torch.equal(scores[0], scores[1])
    assert not scores[2].any()


def test_a_pool_without_any_phrase_says_nothing() -> None:
    model = Phrases().fit([with_phrases([set(), set()]), with_phrases([set()])])
    assert model.score(with_phrases([{1, 2}, set()])).tolist() == [[0, 0], [0, 0]]


def test_more_use_of_a_phrase_scores_higher() -> None:
    samples = [[{1}] * n + [{2}] * (4 - n) for n in range(5)]
    scores = Phrases().fit([with_phrases(own) for own in samples]).score(with_phrases([{1}]))[0].tolist()
    assert scores == sorted(scores)
    assert len(set(scores)) == 5


# meaning and spelling


def noise(model: TiedGaussian, samples: list[Features]) -> Tensor:
    """What distances exceed by since means come from n samples: spread / n, halved."""
    return torch.tensor([model.spread_ / (2 * len(own)) for own in samples])


def test_meaning_is_the_tied_log_likelihood_of_the_embeddings_less_the_noise_of_the_means() -> None:
    samples, query = pool_of([7, 9, 20])
    model = TiedGaussian(SHRINKAGE).fit([own.embeddings for own in samples])
    assert_alike(Meaning().fit(samples).score(query), model.score(query.embeddings) * DIM + noise(model, samples))


@pytest.mark.parametrize("few", [2, 3, 5])
def test_an_adapter_with_few_samples_is_no_farther_from_its_prompts_than_others_from_theirs(few: int) -> None:
    dim, num, generator = 64, 30, torch.Generator().manual_seed(few)
    centres = torch.randn(num, dim, generator=generator) * 0.5
    counts = [few if i % 3 == 0 else 40 for i in range(num)]
    samples = [Features(c + torch.randn(n, dim, generator=generator)) for c, n in zip(centres, counts, strict=True)]
    owner = torch.arange(num).repeat_interleave(100)
    query = Features(centres[owner] + torch.randn(len(owner), dim, generator=generator))
    model = Meaning().fit(samples)
    own = model.score(query)[torch.arange(len(owner)), owner].view(num, 100).mean(1)
    gap = own[1::3].mean() - own[::3].mean()
    assert abs(gap) < 0.25 * model.noise_[0]  # uncorrected, they would be behind by that
    plain = (model.score(query) - model.noise_).argmax(1) == owner
    first = model.score(query).argmax(1) == owner
    assert first.view(num, 100)[::3].double().mean() > plain.view(num, 100)[::3].double().mean() + 0.1


def looped_tfidf(counts: Tensor, known: Tensor) -> Tensor:
    """log counts times (1 + log (1 + texts) / (1 + texts that have it)), at length 1."""
    rows = []
    for row in counts.tolist():
        vector = []
        for bucket, level in enumerate(row):
            having = sum(1 for text in known.tolist() if text[bucket])
            vector.append(level * (math.log((1 + len(known)) / (1 + having)) + 1))
        length = math.sqrt(sum(x * x for x in vector))
        rows.append([x / length if length else 0.0 for x in vector])
    return torch.tensor(rows)


def test_spelling_is_the_tied_log_likelihood_of_tfidf_vectors() -> None:
    samples, query = pool_of([7, 9, 20])
    query = join([query, with_characters([[0] * BUCKETS])])
    counts = [own.terms.characters for own in samples if own.terms is not None]
    known = torch.cat(counts)
    model = TiedGaussian(SPELLING_SHRINKAGE).fit([looped_tfidf(own, known) for own in counts])
    assert query.terms is not None
    want = model.score(looped_tfidf(query.terms.characters, known)) * BUCKETS + noise(model, samples)
    assert_alike(Spelling().fit(samples).score(query), want)


def with_characters(rows: list[list[int]]) -> Features:
    terms = Terms(torch.tensor(rows, dtype=torch.int8), torch.empty(0, dtype=torch.int32), torch.empty(0).long())
    return Features(torch.zeros(len(rows), DIM), terms)


def test_spelling_does_not_see_how_long_a_text_is() -> None:
    samples, _ = pool_of([7, 9, 20])
    row = [3, 0, -5, 7, 0, 0, 1, 2, -4, 0, 6, 0]
    scores = Spelling().fit(samples).score(with_characters([row, [9 * x for x in row]]))
    assert_alike(scores[0], scores[1])


# their product


@pytest.mark.parametrize("weights", [GIVEN, WEIGHTS])
def test_the_score_is_the_weighted_sum_of_the_witnesses(weights: dict[str, float]) -> None:
    samples, query = pool_of([7, 9, 20, 2])
    scores = Experts(weights).fit(samples).score(query)
    witnesses = {"meaning": Meaning(), "spelling": Spelling(), "phrases": Phrases(), "outline": Outline()}
    want = sum(weights[name] * witness.fit(samples).score(query) for name, witness in witnesses.items())
    assert scores.dtype == torch.float32
    assert_alike(shares(scores), shares(want))  # type: ignore[arg-type]
    assert_alike(scores, want)  # type: ignore[arg-type]


@laws
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 3))
def test_adapters_without_terms_keep_the_posterior_that_meaning_gives_them(has: list[bool], seed: int) -> None:
    samples, query = pool_of([6] * len(has), seed)
    mixed = [own if kept else wordless(own) for own, kept in zip(samples, has, strict=True)]
    posterior = shares(Experts(GIVEN).fit(mixed).score(query))
    meaning = shares(GIVEN["meaning"] * Meaning().fit(samples).score(query))
    worded = torch.tensor(has)
    torch.testing.assert_close(posterior[:, ~worded], meaning[:, ~worded], rtol=1e-3, atol=1e-6)
    if worded.sum() < 2:
        torch.testing.assert_close(posterior, meaning, rtol=1e-3, atol=1e-6)
        return
    # those with terms share the rest as they would without the others
    rest = posterior[:, worded] / meaning[:, worded].sum(1, keepdim=True)
    kept = [own for own, has_terms in zip(samples, has, strict=True) if has_terms]
    words = {"spelling": Spelling(), "phrases": Phrases(), "outline": Outline()}
    wording = sum(GIVEN[name] * witness.fit(kept).score(query) for name, witness in words.items())
    want = shares(meaning[:, worded].log() + wording)
    torch.testing.assert_close(rest, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", ["not looked at", "not kept", "not in the query", "kept of one"])
def test_without_terms_meaning_is_all_there_is(how: str) -> None:
    samples, query = pool_of([7, 9, 20])
    meaning = GIVEN["meaning"] * Meaning().fit(samples).score(query)
    if how in ("not kept", "kept of one"):
        samples = [wordless(own) for own in samples[:-1]] + samples[-1:]
    if how == "not kept":
        samples[-1] = wordless(samples[-1])
    if how == "not in the query":
        query = wordless(query)
    assert_alike(Experts(GIVEN, terms=how != "not looked at").fit(samples).score(query), meaning)


def test_marks_are_judged_as_phrases_are() -> None:
    samples, query = pool_of([7, 9, 20])

    def listed(own: Features) -> Features:
        assert own.terms is not None
        assert own.terms.outlines is not None
        return with_phrases([set(row) for row in own.terms.outlines.tolist()])

    want = Phrases().fit([listed(own) for own in samples]).score(listed(query))
    assert_alike(Outline().fit(samples).score(query), want)


@pytest.mark.parametrize("old", [(0, 1, 2), (1,)])
def test_where_an_adapter_has_no_outlines_nobodys_are_looked_at(old: tuple[int, ...]) -> None:
    samples, query = pool_of([7, 9, 20])
    for place in old:
        terms = samples[place].terms
        assert terms is not None
        samples[place] = Features(samples[place].embeddings, Terms(terms.characters, terms.phrases, terms.text))
    model = Experts(GIVEN).fit(samples)
    assert list(model.witnesses_) == ["meaning", "spelling", "phrases"]
    words = {"meaning": Meaning(), "spelling": Spelling(), "phrases": Phrases()}
    want = sum(GIVEN[name] * witness.fit(samples).score(query) for name, witness in words.items())
    assert_alike(model.score(query), want)  # type: ignore[arg-type]


@pytest.mark.parametrize("has", [[True] * 5, [True, False, True, True, False], [False] * 5])
@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 3, 1, 4]])
def test_the_order_of_adapters_does_not_matter(has: list[bool], order: list[int]) -> None:
    samples, query = pool_of([12, 7, 9, 20, 3])
    mixed = [own if kept else wordless(own) for own, kept in zip(samples, has, strict=True)]
    model, turned = Experts().fit(mixed), Experts().fit([mixed[i] for i in order])
    assert turned.weights_ == pytest.approx(model.weights_, rel=1e-3)
    torch.testing.assert_close(
        shares(turned.score(query)), shares(model.score(query))[:, order], rtol=1e-2, atol=1e-4
    )
    fixed, again = Experts(GIVEN).fit(mixed), Experts(GIVEN).fit([mixed[i] for i in order])
    assert_alike(again.score(query), fixed.score(query)[:, order])


def test_the_order_of_samples_and_texts_does_not_matter() -> None:
    samples, query = pool_of([7, 9, 20])
    turned = [own.take(torch.arange(len(own)).flip(0)) for own in samples]
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    scores = Experts(GIVEN).fit(samples).score(query)
    assert_alike(Experts(GIVEN).fit(turned).score(query.take(order)), scores[order])


def test_a_text_scores_alone_as_in_any_batch() -> None:
    samples, query = pool_of([7, 9, 20])
    model = Experts(GIVEN).fit(samples)
    together = model.score(query)
    for row in range(len(query)):
        torch.testing.assert_close(
            model.score(query.take(torch.tensor([row])))[0], together[row], rtol=1e-5, atol=1e-5
        )


def test_equal_adapters_share_equally_and_equal_samples_break_nothing() -> None:
    samples, query = pool_of([8, 9, 10])
    scores = Experts().fit([*samples, samples[0]]).score(query)
    assert_alike(scores[:, 0], scores[:, 3])
    constant = [own.take(torch.zeros(8, dtype=torch.long)) for own in samples]
    for pool in (constant, constant[:1] * 3):
        assert torch.isfinite(Experts().fit(pool).score(query)).all()


@pytest.mark.parametrize("count", [2, 20])
@pytest.mark.parametrize("terms", [True, False])
def test_a_single_adapter_is_certain(count: int, terms: bool) -> None:
    samples, query = pool_of([count])
    model = Experts().fit(samples if terms else [wordless(own) for own in samples])
    assert model.weights_ == WEIGHTS
    assert shares(model.score(query)).tolist() == [[1.0]] * 2


def test_of_an_empty_text_no_phrase_speaks_and_its_scores_are_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [
        Features(torch.randn(6, DIM, generator=generator), hash_terms([f"{words} {n}" for n in range(6)]))
        for words in ("red dogs", "green cats", "blue birds")
    ]
    query = hash_features(["", " ", "red dogs"])
    model = Experts(GIVEN).fit(samples)
    scores = model.score(query)
    assert torch.isfinite(scores).all()
    assert not model.witnesses_["phrases"].score(query)[:2].any()
    meaning = shares(GIVEN["meaning"] * model.witnesses_["meaning"].score(query))
    assert shares(scores)[2, 0] > meaning[2, 0]


def test_fitting_and_scoring_change_nothing_they_were_given() -> None:
    samples, query = pool_of([7, 9, 20])
    again, asked = pool_of([7, 9, 20])
    Experts().fit(samples).score(query)
    for one, other in zip([*samples, query], [*again, asked], strict=True):
        assert one.terms is not None
        assert other.terms is not None
        assert torch.equal(one.embeddings, other.embeddings)
        assert torch.equal(one.terms.characters, other.terms.characters)
        assert torch.equal(one.terms.phrases, other.terms.phrases)


# their weights


def slopes(owner: Tensor, scores: dict[str, Tensor], weights: dict[str, float]) -> dict[str, float]:
    """d / d log w_v of sum_h log p(owner_h) - |log w - log WEIGHTS|^2 / 2, one held-out sample after another."""
    found = {name: -math.log(weights[name] / WEIGHTS[name]) for name in scores}
    for h, own in enumerate(owner.tolist()):
        total = sum(weights[name] * scores[name][h].double() for name in scores)
        posterior = torch.softmax(total, dim=0)  # type: ignore[arg-type]
        for name in scores:
            row = scores[name][h].double()
            found[name] += weights[name] * float(row[own] - (posterior * row).sum())
    return found


@pytest.mark.parametrize("terms", [True, False])
@pytest.mark.parametrize("counts", [(12, 9, 20, 7), (30, 30), (6, 2, 11)])
def test_at_the_fitted_weights_no_step_makes_held_out_samples_likelier(counts: tuple[int, ...], terms: bool) -> None:
    samples, _ = pool_of(counts)
    weights = fit_weights(samples, terms)
    owner, scores = witness_scores(samples, terms)
    assert scores.keys() == (WEIGHTS.keys() if terms else {"meaning"})
    assert all(weight > 0 for weight in weights.values())
    assert {name: weights[name] for name in WEIGHTS.keys() - scores.keys()} == {
        name: WEIGHTS[name] for name in WEIGHTS.keys() - scores.keys()
    }
    at_start = slopes(owner, scores, WEIGHTS)
    assert max(map(abs, at_start.values())) > 0.5  # there was something to gain
    assert list(slopes(owner, scores, weights).values()) == pytest.approx([0.0] * len(scores), abs=1e-2)


@pytest.mark.parametrize(
    "true", [{"meaning": 0.3, "spelling": 0.002, "phrases": 0.08, "outline": 0.01}, dict(WEIGHTS)], ids=str
)
def test_known_weights_are_found_again(true: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of all sizes, and owners drawn with the probabilities that the true weights give."""
    generator = torch.Generator().manual_seed(5)
    scores = {
        name: torch.randn(6000, 5, generator=generator) * 1.5 / weight
        + 100 * torch.randn(6000, 1, generator=generator)
        for name, weight in true.items()
    }
    posterior = torch.softmax(sum(true[name] * scores[name].double() for name in true), 1)  # type: ignore[arg-type]
    owner = torch.multinomial(posterior, 1, generator=generator)[:, 0]
    monkeypatch.setattr(experts, "witness_scores", lambda *_: (owner, scores))
    assert fit_weights(pool_of([6, 6])[0]) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("counts", [(12, 9, 20, 7), (6, 2, 11)])
def test_no_sample_is_scored_by_a_witness_that_has_seen_it(
    counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, set[tuple[float, ...]], set[tuple[float, ...]]]] = []

    def seen(parts: Sequence[Features]) -> set[tuple[float, ...]]:
        return {tuple(vector) for part in parts for vector in part.embeddings.tolist()}

    def recording(kind: type) -> type:
        class Recorder(kind):  # type: ignore[misc]
            def fit(self, samples: Sequence[Features]) -> object:
                self.seen = seen(samples)
                return super().fit(samples)

            def score(self, texts: Features) -> Tensor:
                log.append((kind.__name__, self.seen, seen([texts])))
                scores: Tensor = super().score(texts)
                return scores

        return Recorder

    for kind in (Meaning, Spelling, Phrases, Outline):
        monkeypatch.setattr(experts, kind.__name__, recording(kind))
    samples, _ = pool_of(counts)
    fit_weights(samples)
    assert {name for name, _, _ in log} == {"Meaning", "Spelling", "Phrases", "Outline"}
    assert all(scored and not scored & known for _, known, scored in log)
    assert all(len(scored | known) == sum(counts) for _, known, scored in log)


def test_a_held_out_sample_keeps_its_words() -> None:
    samples, _ = pool_of([12, 9, 20, 7])
    words = {
        tuple(vector): phrases
        for own in samples
        for vector, phrases in zip(own.embeddings.tolist(), phrase_sets(own), strict=True)
    }
    for kept, held, owner in folds(samples):
        for part in [*kept, held]:
            for vector, phrases in zip(part.embeddings.tolist(), phrase_sets(part), strict=True):
                assert words[tuple(vector)] == phrases
        for vector, own in zip(held.embeddings.tolist(), owner.tolist(), strict=True):
            assert vector in samples[own].embeddings.tolist()


@pytest.mark.parametrize("counts", [(2, 2, 2), (5, 4, 2), (20,)])
@pytest.mark.parametrize("terms", [True, False])
def test_where_nothing_can_be_held_out_or_compared_the_weights_are_the_default(
    counts: tuple[int, ...], terms: bool
) -> None:
    samples, query = pool_of(counts)
    model = Experts(terms=terms).fit(samples)
    assert fit_weights(samples, terms) == model.weights_ == WEIGHTS
    assert torch.isfinite(model.score(query)).all()


def test_where_terms_are_missing_wording_is_weighed_among_those_that_have_it() -> None:
    samples, _ = pool_of([12, 9, 20, 7])
    without = fit_weights([wordless(own) for own in samples])
    assert without == fit_weights(samples, terms=False) != WEIGHTS
    assert fit_weights([*samples[:-1], wordless(samples[-1])]) == fit_weights(samples[:-1])
    assert fit_weights([samples[0], *map(wordless, samples[1:])]) == without  # one alone cannot be compared


def test_a_large_pool_is_weighed_on_adapters_from_all_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, _ = pool_of([9, 8, 7, 8, 9, 7, 8])
    monkeypatch.setattr(experts, "MOST_ADAPTERS", 3)
    assert fit_weights(samples) == fit_weights(samples[::3]) != fit_weights(samples[:3])


def test_weights_are_the_same_every_time() -> None:
    samples, _ = pool_of([12, 9, 20, 7])
    assert fit_weights(samples) == fit_weights(samples)
    assert fit_weights(samples) == fit_weights(pool_of([12, 9, 20, 7])[0])


def test_the_posterior_is_calibrated_on_texts_that_nothing_was_fitted_on() -> None:
    maker = made(6, seed=3)
    samples = [maker.draw(i, 20) for i in range(6)]
    query = join([maker.draw(i, 150) for i in range(6)])
    posterior = shares(Experts().fit(samples).score(query))
    label = torch.arange(6).repeat_interleave(150)
    right = (posterior.argmax(1) == label).double().mean()
    assert 0.5 < right < 0.97
    assert abs(float(posterior.max(1).values.mean()) - float(right)) < 0.05
    alone = shares(Experts(terms=False).fit(samples).score(query))
    assert right > (alone.argmax(1) == label).double().mean()


@laws
@given(shuffles)
def test_ids_of_phrases_do_not_matter(order: Sequence[int]) -> None:
    """Phrases are names: another hash gives the same scores."""
    samples = [[{0, i}, {i}, {i, (i + 1) % len(order)}] for i in range(len(order))]
    query = [{0, 1}, {len(order) - 1}]
    renamed = [[{order[t] * 31 for t in text} for text in own] for own in samples]
    scores = Phrases().fit([with_phrases(own) for own in samples]).score(with_phrases(query))
    other = Phrases().fit([with_phrases(own) for own in renamed])
    assert_alike(other.score(with_phrases([{order[t] * 31 for t in text} for text in query])), scores)


def test_one_adapter_without_terms_leaves_the_calibration_of_the_others_as_it_is() -> None:
    generator = torch.Generator().manual_seed(11)
    words = ["red", "green", "blue", "white", "black", "brown", "pink", "grey"]
    centres = torch.randn(len(words), DIM, generator=generator)
    samples = []
    for centre, word in zip(centres, words, strict=True):
        texts = [f"is it {word} or not, case {n}?" for n in range(20)]
        samples.append(Features(centre + torch.randn(20, DIM, generator=generator), hash_terms(texts)))
    every = calibrate(samples)
    some = calibrate([*samples[:-1], Features(samples[-1].embeddings)])
    assert some.weights["meaning"] == pytest.approx(every.weights["meaning"], rel=0.5)
    assert every.seen_above is not None
    assert some.seen_above == pytest.approx(every.seen_above, rel=0.4)
    assert len(some.surprises) == 7 * 20
