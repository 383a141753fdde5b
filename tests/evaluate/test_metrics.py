"""Metrics from sums of statistics are those of the libraries that define them, and tasks have the papers' metrics."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from hilora.errors import HiloraError, InputError, UnknownNameError
from hilora.evaluate import metrics
from hilora.evaluate.metrics import METRICS, Floats, Metric, label_f1, label_metric, label_stats
from hilora.evaluate.tasks import DECLARED, TASKS, metrics_for, paper_cluster

laws = settings(deadline=None, max_examples=60, derandomize=True)
words = st.sampled_from(["a", "the", "dog", "dogs", "ran", "Dog.", "it's", "10,5", "ćma", "<b>", "&amp;"])
sentences = st.lists(words, max_size=9).map(" ".join)
corpora = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6)


def value(metric: Metric, pairs: list[tuple[str, str]]) -> float:
    rows = np.array([metric.row(answer, reference) for answer, reference in pairs])
    return float(metric.value(rows.sum(0), np.array(len(rows))))


def sacre(pairs: list[tuple[str, str]]) -> float:
    answers, references = zip(*pairs, strict=True)
    return float(sacrebleu.corpus_bleu(list(answers), [list(references)]).score / 100)


# what all metrics share


@laws
@given(st.sampled_from(sorted(METRICS)), corpora)
def test_a_metric_is_between_0_and_1_and_free_of_the_rows_order(name: str, pairs: list[tuple[str, str]]) -> None:
    found = value(METRICS[name], pairs)
    assert 0 <= found <= 1 + 1e-12
    assert value(METRICS[name], pairs[::-1]) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_reference_itself_scores_1(name: str) -> None:
    text = "Two dogs, both brown, ran over the green hill."
    assert METRICS[name].name == name
    assert value(METRICS[name], [(text, text)] * 3) == pytest.approx(1)


@pytest.mark.parametrize("name", [*sorted(METRICS), "label_f1"])
def test_values_of_many_sums_are_the_values_of_each(name: str) -> None:
    metric = METRICS[name] if name in METRICS else label_metric(["b", "c", "a b"])
    pairs = [("a b c d e", "a b"), ("b", "b"), ("c", "b"), ("a b", "c")]
    rows = np.array([metric.row(answer, reference) for answer, reference in pairs])
    sums: Floats = np.stack([rows[:k].sum(0) for k in (1, 2, 3, 4, 2, 1)]).reshape(2, 3, -1)
    counts = np.array([[1, 2, 3], [4, 2, 1]])
    found = metric.value(sums, counts)
    assert found.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert found[i, j] == pytest.approx(float(metric.value(sums[i, j], np.array(counts[i, j]))))


# BLEU


@laws
@given(corpora)
def test_bleu_from_sums_is_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    assert value(METRICS["bleu"], pairs) == pytest.approx(sacre(pairs), abs=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("matches", range(6))
def test_bleu_is_sacrebleus_where_only_short_ngrams_match(matches: int, length: int) -> None:
    reference = "one two three four five six seven"
    answer = " ".join([*reference.split()[:matches], *["other"] * length])
    assert value(METRICS["bleu"], [(answer, reference)]) == pytest.approx(sacre([(answer, reference)]), abs=1e-12)


@pytest.mark.parametrize("pairs", [[("", "")], [("", "a b c d")], [("a b c d", "")]])
def test_bleu_of_empty_texts_is_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    assert value(METRICS["bleu"], pairs) == pytest.approx(sacre(pairs), abs=1e-12)


# scores of single rows


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_mean_of_rouge_scores_stemmed_f(name: str) -> None:
    pairs = [("the dogs ran", "a dog runs home"), ("dogs running home", "the dog runs home"), ("", "x y")]
    scorer = RougeScorer([name], use_stemmer=True)
    expected = np.mean([scorer.score(reference, answer)[name].fmeasure for answer, reference in pairs])
    assert 0 < value(METRICS[name], pairs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in the tower", "Eiffel Tower", 2 * 0.5 * 0.5 / (0.5 + 0.5)),
        ("x x x y", "x x z", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),  # a word counts as often as in both
        ("u.s. army", "US Army", 1.0),
        ("an", "the", 1.0),  # nothing is left of either
        ("the", "tower", 0.0),
        ("Athens", "another", 0.0),  # articles are whole words
    ],
)
def test_token_f1_by_hand(answer: str, reference: str, expected: float) -> None:
    assert METRICS["f1"].row(answer, reference) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("answer", "loose", "strict"),
    [("Yes, I am.", 1, 1), (" Yes,  I\nam. ", 1, 1), ("yes, I am.", 1, 0), ("Yes, I am", 1, 0), ("Yes I am.", 0, 0)],
)
def test_exact_sees_letter_case_and_punctuation_and_exact_match_neither(answer: str, loose: int, strict: int) -> None:
    assert METRICS["exact_match"].row(answer, "Yes, I am.") == [loose]
    assert METRICS["exact"].row(answer, "Yes, I am.") == [strict]


# F1 of labels


@laws
@given(st.lists(st.tuples(st.sampled_from("abcdx"), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_label_f1_is_scikit_learns_over_the_references_labels(pairs: list[tuple[str, str]]) -> None:
    answers, references = zip(*pairs, strict=True)
    labels = sorted(set(references))
    expected = f1_score(references, answers, average="macro", labels=labels, zero_division=0)
    assert label_f1(answers, references) == pytest.approx(expected, abs=1e-12)
    hashed = [[hashlib.sha256(key.encode()).hexdigest()[:8] for key in side] for side in (answers, references)]
    assert label_f1(*hashed) == pytest.approx(expected, abs=1e-12)
    # a label that no reference of these rows has changes nothing, whether it is answered or not
    assert value(label_metric(["x", *"abcd", "never"]), pairs) == pytest.approx(expected, abs=1e-12)


def test_label_stats_count_each_label() -> None:
    assert label_stats("yes", "yes", ["no", "yes"]) == [0, 0, 0, 1, 0, 0]
    assert label_stats("no", "yes", ["no", "yes"]) == [0, 1, 0, 0, 0, 1]
    assert label_stats("maybe", "yes", ["no", "yes"]) == [0, 0, 0, 0, 0, 1]
    with pytest.raises(InputError, match="'maybe' is not among the 2 labels"):
        label_stats("yes", "maybe", ["no", "yes"])


@pytest.mark.parametrize(
    ("module", "name"), [("rouge_score.rouge_scorer", "rougeL"), ("sacrebleu.metrics.bleu", "bleu")]
)
def test_a_missing_library_is_named_with_its_remedy(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    metrics._rouge_scorer.cache_clear()
    metrics._bleu_counter.cache_clear()
    with pytest.raises(HiloraError, match=r"pip install 'hilora\[evaluate\]'"):
        METRICS[name].row("a", "b")


def test_every_named_metric_exists() -> None:
    named = {name for _, names in TASKS for name in names} | {name for names in DECLARED.values() for name in names}
    assert named <= {*METRICS, "label_f1"}


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ("anli_r3 cb mnli_matched copa wsc stsb arc_easy bool_q record yelp_polarity_reviews", "exact_match"),
        ("cola wic math_dataset bbh_snarks ag_news_subset yahoo_answers_topics", "exact_match"),
        ("multirc natural_questions squad_v1 squad_v2 trivia_qa drop drop_contrast word_segment", "exact_match f1"),
        ("sentiment140 glue_mrpc glue_qqp", "exact_match label_f1"),
        ("wmt14_enfr wmt16_translate_tren newstest_enes multi30k_deen para_crawl_enes", "bleu"),
        ("common_gen dart e2e_nlg web_nlg_en gigaword", "rouge1 rouge2 rougeL bleu"),
        ("samsum dialogsum", "rouge1 rouge2 rougeL"),
        ("fix_punct true_case spelling", "exact"),
    ],
)
def test_tasks_have_the_papers_metrics(tasks: str, expected: str) -> None:
    for task in tasks.split():
        assert metrics_for(task) == tuple(expected.split()), task
        assert metrics_for(task, "bleu") == tuple(expected.split()), task


def test_only_an_unknown_task_is_scored_as_declared() -> None:
    assert metrics_for("my_task") == ("exact_match",)
    assert metrics_for("my_cb") == ("exact_match",)  # patterns fit whole names only
    assert metrics_for("my_task", "rouge") == ("rouge1", "rouge2", "rougeL")
    with pytest.raises(UnknownNameError, match="Did you mean 'rouge'"):
        metrics_for("my_task", "rogue")


def test_clusters_have_the_papers_names() -> None:
    assert {paper_cluster(name) for name in ("closed_book QA", "reading comp", "read.comp.w:commonsense")} == {"QA"}
    assert paper_cluster("struct to text") == "Struct-to-text"
    assert paper_cluster("summarization") == "Summarization"
