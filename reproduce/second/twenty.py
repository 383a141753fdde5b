"""The tasks of the second base: their names, or a pool of their adapters alone.

python reproduce/second/twenty.py                                               # the names
python reproduce/second/twenty.py --of pools/flan-mini --out runs/smollm2-20    # a pool
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from copied import copied

TASKS = (
    "sst2",
    "yelp_polarity_reviews",
    "snli",
    "qnli",
    "mnli_mismatched",
    "trec",
    "ag_news_subset",
    "banking77",
    "common_gen",
    "e2e_nlg",
    "web_nlg_en",
    "multi30k_deen",
    "multi30k_fren",
    "copa",
    "commonsense_qa",
    "piqa",
    "glue_qqp",
    "paws_wiki",
    "word_segment",
    "fix_punct",
)


def some(source: Path, out: Path) -> None:
    """A pool with the adapters of these tasks alone."""
    with copied(source, out) as pool:
        for name in sorted(set(pool.names) - set(TASKS)):
            pool.remove(name)
        pool.tune(always=True)
    print(f"{out}: {len(pool)} adapters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--of", type=Path, help="a pool")
    parser.add_argument("--out", type=Path, help="where the other one is to be")
    args = parser.parse_args()
    if (args.of is None) != (args.out is None):
        parser.error("--of and --out go together.")
    if args.of:
        some(args.of, args.out)
    else:
        print(*TASKS)


if __name__ == "__main__":
    main()
