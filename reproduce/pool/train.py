"""Train the adapters of pools/flan-mini: one folder each, resumable at any point.

    python reproduce/pool/train.py --data FLAN_MINI --out runs/adapters

FLAN_MINI holds train/<task>.jsonl with {"inputs", "targets"} lines. Finished adapters are kept unless their recipe
was changed; an interrupted one goes on at its last checkpoint. Two CPU cores take about 5 minutes
for each; `--compile` (needs a C++ compiler) makes that 4. `--base` trains them for another base, by the same recipes.
"""

import argparse
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from hilora.base.models import load_base
from hilora.train.data import read_lines
from hilora.train.lora import train_lora
from hilora.train.recipe import Recipe

# Steps by how soon the loss settles and by length; ranks differ so that mixed ranks are real. Tasks of like
# kind share a recipe. Left out: bbh_* (kept unseen), wnli and wsc (fewer than 400 lines, near chance for any
# small model), anli_r2 and anli_r3 (anli_r1 is not learned), translation from Finnish, Turkish, Russian, Romanian,
# Czech news (beyond a 135M English model).
SHORT = Recipe(steps=100, max_tokens=224)
LABEL = Recipe(steps=130, max_tokens=224)
LONG = Recipe(steps=70, max_tokens=224)
RECIPES = {
    "sst2": Recipe(steps=90),
    "snli": Recipe(steps=150),
    "yelp_polarity_reviews": Recipe(steps=60, max_tokens=192),
    "trec": Recipe(steps=80, rank=4, alpha=8),
    "common_gen": Recipe(steps=80),
    "arithmetic": Recipe(steps=120),
    "anli_r1": Recipe(steps=70, max_tokens=256),
    "ag_news_subset": Recipe(steps=70, max_tokens=192),
    # from here on in the order of training: every cluster early
    "sentiment140": Recipe(steps=100, max_tokens=224, rank=4, alpha=8),
    "glue_qqp": LABEL,
    "e2e_nlg": SHORT,
    "qnli": LABEL,
    "multi30k_deen": SHORT,
    "subj": SHORT,
    "emotion": LABEL,
    "word_segment": SHORT,
    "conll2003_ner": SHORT,
    "commonsense_qa": LABEL,
    "web_questions": SHORT,
    "samsum": LONG,
    "definite_pronoun_resolution": LABEL,
    "arc_easy": SHORT,
    "squad_v1": LONG,
    "true_case": SHORT,
    "fix_punct": SHORT,
    "spelling": SHORT,
    "banking77": LABEL,
    "clinc150": LABEL,
    "math_dataset": LABEL,
    "multi30k_fren": SHORT,
    "web_nlg_en": Recipe(steps=80, max_tokens=224, rank=16, alpha=32),
    "dart": SHORT,
    "copa": LABEL,
    "social_i_qa": LABEL,
    "imdb_reviews": LONG,
    "natural_questions": SHORT,
    "openbookqa": LABEL,
    "wic": LABEL,
    "yahoo_answers_topics": Recipe(steps=80, max_tokens=192),
    "dialogsum": LONG,
    "bool_q": LONG,
    "story_cloze": SHORT,
    "paws_wiki": SHORT,
    "mnli_mismatched": LABEL,
    "winogrande": LABEL,
    "piqa": SHORT,
    "hellaswag": LONG,
    "arc_challenge": SHORT,
    "cosmos_qa": LONG,
    "wmt14_enfr": SHORT,
    "wmt16_translate_deen": SHORT,
    "multi30k_csen": SHORT,
    "newstest_enes": SHORT,
    "trivia_qa": SHORT,
    "squad_v2": LONG,
    "mnli_matched": Recipe(steps=150, rank=16, alpha=32),
    "stsb": SHORT,
    "cola": Recipe(steps=90),
    "rte": SHORT,
    "glue_mrpc": SHORT,
    "drop_contrast": Recipe(steps=60, batch=8, max_tokens=352),
    "multirc": Recipe(steps=60, batch=8, max_tokens=352),
    "cb": LONG,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--tasks", nargs="*", default=list(RECIPES))
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--name", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="of the base, in the adapters")
    parser.add_argument("--compile", action="store_true", help="compiled layers: 1.4 times as fast")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_base(args.base)
    for task in args.tasks:
        if (args.out / task).exists():
            if json.loads((args.out / task / "recipe.json").read_text()) == json.loads(
                json.dumps(asdict(RECIPES[task]))
            ):
                print(f"{task}: done before", flush=True)
                continue
            shutil.rmtree(args.out / task)
            print(f"{task}: once more, by its new recipe", flush=True)
        start = time.perf_counter()

        def log(step: int, loss: float, speed: float, task: str = task) -> None:
            if step % 10 == 0:
                print(f"{task} step {step}/{RECIPES[task].steps} loss {loss:.3f} {speed:.0f} tok/s", flush=True)

        train_lora(
            read_lines(args.data / "train" / f"{task}.jsonl"),
            args.out / task,
            model=model,
            tokenizer=tokenizer,
            base_name=args.name,
            recipe=RECIPES[task],
            compile=args.compile,
            on_step=log,
        )
        print(f"{task}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
