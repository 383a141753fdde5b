"""The README's picture: what `hilora demo` prints of its first prompts, but for its times, as SVG.

python reproduce/figures/demo.py --out docs/demo.svg
"""

import argparse
from pathlib import Path

from hilora import HiLoRA
from hilora.cli import demo, show
from hilora.cli.options import quiet_transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pool", default="pools/flan-mini")
    parser.add_argument("--out", type=Path, default=Path("docs/demo.svg"))
    args = parser.parse_args()
    quiet_transformers()
    show.console.record = True
    show.console.width = 100
    router = HiLoRA.from_pretrained(pool=args.pool, method=demo.METHOD)
    demo.show_answers(router, demo.PROMPTS[:4])
    show.console.save_svg(str(args.out), title="hilora demo")


if __name__ == "__main__":
    main()
