"""Tables that a page quotes from other pages, put in again between its markers.

    python reproduce/quoted.py     # README.md

A marker names the page, from the repository's root, and the heading under which the table is the first:

    <!-- from reproduce/hilora/results.md: The lead -->
    <!-- end -->
"""

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUOTE = re.compile(r"(<!-- from (\S+): (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def table_under(page: str, heading: str) -> str:
    """The first table below a heading of a Markdown page.

    Raises:
        ValueError: there is no such heading, or no table below it.
    """
    _, found, rest = page.partition(f"## {heading}\n")
    table = re.search(r"(^\|.*\n)+", rest.partition("\n## ")[0], re.MULTILINE)
    if not found or table is None:
        raise ValueError(f"got a page without a table under {heading!r}; name a heading that has one")
    return table.group()


def quoted(text: str, root: Path) -> str:
    """A page with what it quotes as it is now."""
    return QUOTE.sub(lambda m: m[1] + table_under((root / m[2]).read_text(), m[3]) + m[4], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=[ROOT / "README.md"])
    for page in parser.parse_args().pages:
        page.write_text(quoted(page.read_text(), ROOT))


if __name__ == "__main__":
    main()
