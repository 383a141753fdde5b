"""Which metrics a task is scored by, and which cluster it is reported in, as in HiLoRA (appendix C.1).

Where the paper says accuracy this is exact match, or for text correction exact match with letter case and
punctuation. F1 is that of labels where the answer is one of few labels, that of words where it is a span. Tasks
that the paper does not use follow their nearest neighbour in it, or RAMoLE.
"""

from __future__ import annotations

import re

from hilora.errors import UnknownNameError

ROUGE = ("rouge1", "rouge2", "rougeL")

TASKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # NLI, commonsense, coreference
    (r"anli_r\d|cb|mnli\w*|snli|qnli|rte|wnli", ("exact_match",)),
    (r"copa|hellaswag|piqa|story_cloze|commonsense_qa|social_i_qa", ("exact_match",)),
    (r"winogrande|definite_pronoun_resolution|wsc\w*", ("exact_match",)),
    # questions with given choices; questions with free answers
    (r"arc_\w+|bool_q|openbookqa|cosmos_qa|record", ("exact_match",)),
    (r"multirc|natural_questions|web_questions|squad_v\d|trivia_qa|drop\w*|coqa|quac", ("exact_match", "f1")),
    # sentiment, paraphrase
    (r"sst2|imdb\w*|yelp\w*|stsb|paws_\w+", ("exact_match",)),
    (r"sentiment140|glue_mrpc|glue_qqp", ("exact_match", "label_f1")),
    # sentences
    (r"(wmt|newstest|multi30k|para_crawl)\w*", ("bleu",)),
    (r"common_gen|dart|e2e_nlg|web_nlg\w*|gigaword", (*ROUGE, "bleu")),
    (r"samsum|dialogsum|cnn_dailymail|multi_news|opinion_abstracts_\w+|wiki_lingua\w*", ROUGE),
    # text correction, word level
    (r"fix_punct|true_case|spelling", ("exact",)),
    (r"cola|wic", ("exact_match",)),
    (r"word_segment|conll2003_ner", ("exact_match", "f1")),
    # mathematics, classification, BIG-bench hard
    (r"math\w*|arithmetic|bbh_\w+", ("exact_match",)),
    (r"trec|ag_news\w*|emotion|banking77|clinc150|subj|yahoo\w*", ("exact_match",)),
)
"""(pattern of the whole task name, names of its metrics); the first that fits counts."""

DECLARED: dict[str, tuple[str, ...]] = {
    "em": ("exact_match",),
    "accuracy": ("exact_match",),
    "f1": ("f1",),
    "rouge": ROUGE,
    "bleu": ("bleu",),
}
"""What data files call their metric."""

PAPER_CLUSTERS = {
    "nli": "NLI",
    "closed_book QA": "QA",
    "reading comp": "QA",
    "read.comp.w:commonsense": "QA",
    "sentiment": "Sentiment",
    "translation": "Translation",
    "commonsense": "Commonsense",
    "paraphrase": "Paraphrase",
    "struct to text": "Struct-to-text",
    "coreference": "Coreference",
    "text correction": "Text correction",
    "word level": "Word-level",
}
"""The data's cluster names as HiLoRA's ten."""


def metrics_for(task: str, declared: str | None = None) -> tuple[str, ...]:
    """Names of the metrics of a task of the FLAN family.

    Args:
        task: e.g. "dart".
        declared: the metric that the data names, used for a task that `TASKS` does not know; without one, such a
            task has exact match.

    Returns:
        Keys of `hilora.evaluate.metrics.METRICS`, or "label_f1", which needs the task's labels.

    Raises:
        UnknownNameError: the declared metric is none of `DECLARED`.
    """
    if declared is not None and declared not in DECLARED:
        raise UnknownNameError("declared metric", declared, DECLARED)
    for pattern, metrics in TASKS:
        if re.fullmatch(pattern, task):
            return metrics
    return DECLARED[declared or "em"]


def paper_cluster(cluster: str) -> str:
    """The name under which HiLoRA reports a cluster of the data; others in title case."""
    return PAPER_CLUSTERS.get(cluster, cluster.title())
