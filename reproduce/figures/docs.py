"""The pictures in docs/images, each by the command that the page beside it names.

    python reproduce/figures/docs.py
    python reproduce/figures/docs.py --only rocs

All of them come from the pool and from committed rows.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hilora.cli.app import app

POOL = "pools/flan-mini"
RETRIEVAL = "reproduce/ramole/retrieval.json"
METHODS = ("cosine", "own", "tied", "experts")
PLANE = "model.layers.15.self_attn.v_proj"
REVIEW = (
    "Is the sentiment of this movie review positive or negative?\n\n"
    "the plot limps along , but the two leads are a delight to watch .\n\nOPTIONS:\n- negative\n- positive"
)
FEW = ("sst2", "yelp_polarity_reviews", "snli", "mnli_mismatched", "dart", "arithmetic")


def commands() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name -> (command, file that it makes -> name in docs/images)."""
    return {
        "rocs": (
            ["rocs", "--pool", POOL, "--sites", "q_proj,v_proj", "--draw", "0"],
            {"rocs_scores.png": "rocs_scores.png", "rocs_overlap.png": "rocs_overlap.png"},
        ),
        "planes": (
            ["rocs", "--pool", POOL, "--site", PLANE, *_each("--adapter", FEW)],
            {"rocs_model*": "rocs.png"},
        ),
        "activation": (
            ["activation", "--pool", POOL, "--prompt", REVIEW, "--method", "hilora"],
            {"activation.png": "activation.png"},
        ),
        "selection": (
            ["selection", "--rows", "reproduce/hilora/rows/within.jsonl.gz", "--method", "hilora"],
            {"selection_hilora.png": "selection.png"},
        ),
        "retrieval": (
            ["retrieval", "--json", RETRIEVAL, *_each("--method", METHODS)],
            {"retrieval.png": "retrieval.png"},
        ),
    }


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (option, value)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (command, files) in commands().items():
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            app(["figures", *command, "--out", folder], standalone_mode=False)
            for pattern, target in files.items():
                (found,) = [path for path in Path(folder).glob(pattern) if path.suffix == ".png"]
                shutil.copy(found, args.out / target)


if __name__ == "__main__":
    main()
