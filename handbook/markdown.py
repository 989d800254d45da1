"""How do facts of the code become Markdown?"""

from collections.abc import Iterable, Sequence

from markdown.extensions.toc import slugify


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a table; without rows nothing."""
    lines = [_line(row) for row in rows]
    return "\n".join([_line(head), _line(["---"] * len(head)), *lines, ""]) if lines else ""


def code(text: object) -> str:
    """Give text as code within a line, whatever backticks it holds."""
    ticks = "``" if "`" in str(text) else "`"
    return f"{ticks}{text}{ticks}"


def page(title: str, source: str, *parts: str) -> str:
    """Give a page of the reference: its title, what it was made from, and its parts."""
    return "\n\n".join([f"# {title}", f"*Made from {source} by `make docs`.*", *filter(None, parts)]) + "\n"


def anchor(heading: str) -> str:
    """Give the fragment under which a page's heading is found."""
    return slugify(heading, "-")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
