"""How do facts of the code become Markdown?"""

import re
from collections.abc import Iterable, Sequence

from markdown.extensions.toc import slugify

METHOD_PART = re.compile(r"\bMETHOD (\d+)")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a table; without rows nothing."""
    lines = [_line(row) for row in rows]
    return "\n".join([_line(head), _line(["---"] * len(head)), *lines, ""]) if lines else ""


def code(text: object) -> str:
    """Give text as code within a line, whatever backticks it holds."""
    ticks = "``" if "`" in str(text) else "`"
    return f"{ticks}{text}{ticks}"


def page(title: str, source: str, *parts: str) -> str:
    """Give a page of the reference: its title, what it was made from, and its parts.

    What a docstring calls `METHOD 4` becomes a link to the method's page.
    """
    text = "\n\n".join([f"# {title}", f"*Made from {source} by `make docs`.*", *filter(None, parts)]) + "\n"
    return METHOD_PART.sub(r"[The method, part \1](../../method.md)", text)


def anchor(heading: str) -> str:
    """Give the fragment under which a page's heading is found."""
    return slugify(heading, "-")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
