"""How Sphinx makes a site of these pages: `make docs`, into build/docs.

The repository's root is the source, so that links mean what they mean in a checkout. Pages are those of docs/ and the
Markdown files that they lead to; any other file that is linked becomes a download.
"""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from hilora import __version__

ROOT = Path(__file__).parents[1]
INDEX = "docs/index"
FOLDER = re.compile(r"(?<=\]\()([\w./-]+)(?=\))")
"""Where a link leads, if that may be a folder."""

project, author, release = "hilora", "the authors of hilora", __version__
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = INDEX
include_patterns = [
    *("README.md", "CHANGELOG.md", "dev/LOG.md", "docs/*.md", "benchmarks/*.md", "pools/flan-mini/README.md"),
    "reproduce/**/*.md",
]
exclude_patterns = [".venv", "build", "runs"]
html_theme = "furo"
html_title = f"hilora {release}"
html_extra_path = ["_site"]
html_copy_source = False

myst_heading_anchors = 4
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar, napoleon_attr_annotations = True, False  # types are in the signature already


def with_toctree(page: str) -> str:
    """The index with a hidden tree of what its tables and lists lead to, in their order."""
    linked = dict.fromkeys(re.findall(r"\]\(([\w./-]+\.md)\)", page))
    return page + "\n```{toctree}\n:hidden:\n\n" + "".join(f"{each}\n" for each in linked) + "```\n"


def with_readmes(page: str, folder: Path) -> str:
    """A page whose links to folders lead to the README there."""

    def readme(found: re.Match[str]) -> str:
        inside = folder / found[0] / "README.md"
        return f"{found[0].rstrip('/')}/README.md" if inside.is_file() else found[0]

    return FOLDER.sub(readme, page)


def read_source(app: Any, name: str, source: list[str]) -> None:
    """What Sphinx is given to read of a page."""
    page = with_readmes(source[0], (ROOT / name).parent)
    if name == INDEX:
        page = with_toctree(page)
    elif not name.startswith("docs/"):
        page = f"---\norphan: true\n---\n{page}"  # led to by links alone
    source[0] = page


def read_docstring(app: Any, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """What napoleon is given to read of a docstring: with its blocks of code, and what is said beside fields."""
    for at, line in enumerate(lines[:-2]):
        if (
            line.endswith(":")
            and not lines[at + 1].strip()
            and lines[at + 2].startswith(line[: _indent(line)] + "    ")
        ):
            lines[at] += ":"
    if what == "class" and dataclasses.is_dataclass(documented) and "Attributes:" not in lines:
        told = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(documented), re.MULTILINE))
        if told:
            lines += ["", "Attributes:", *(f"    {field}: {text}" for field, text in told.items()), ""]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
