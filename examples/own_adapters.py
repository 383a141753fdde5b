"""Your own adapters: two PEFT folders become a pool, and prompts that name none of them are answered.

python examples/own_adapters.py
"""

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from hilora import Embedder, HiLoRA, Pool
from hilora.base.embed import describe_embedder
from hilora.base.fingerprint import describe_base
from hilora.pool.export import export_adapter

SHARED = Path(__file__).parents[1] / "pools" / "flan-mini"
REVIEW = "Is the sentiment of this movie review positive or negative?\n\n{} {} .\n\nOPTIONS:\n- negative\n- positive"
PARTS = "the plot", "every scene", "the cast", "this sequel"
VERDICTS = "is a delight", "bored me to tears", "could not be better", "falls flat", "moves you"
SAMPLES = {  # about 20 prompts of each adapter's task; routing knows an adapter by them
    "arithmetic": [f"What is {a} plus {b}?" for a, b in product((4, 17, 28, 63), (5, 12, 39, 50, 81))],
    "sst2": [REVIEW.format(*words) for words in product(PARTS, VERDICTS)],
}


def main(place: Path) -> None:
    """Make a pool in a folder, and ask it."""
    # Two folders, as PEFT saves them and the Hub has them. Put yours here.
    folders = {name: export_adapter(Pool.open(SHARED), name, place / name) for name in SAMPLES}

    embedder = Embedder()
    pool = Pool.create(place / "pool", describe_base("smollm2-135m"), describe_embedder(embedder))
    for name, folder in folders.items():
        pool.add(name, folder, SAMPLES[name], embedder, origin="prompts")  # checked against the base, or refused
    pool.tune()  # routing's constants, chosen on the samples

    router = HiLoRA.from_pretrained(pool=pool, embedder=embedder)
    prompts = ["What is 46 plus 27?", REVIEW.format("the ending", "is a triumph")]
    for prompt, answer in zip(prompts, router.generate(prompts, max_new_tokens=8), strict=True):
        print(f"{prompt.splitlines()[0]} -> {answer.text}   by {', '.join(answer.adapters)}, ROCs {answer.rocs}")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder))
