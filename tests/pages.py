"""The pages that people read, taken apart: links, inline code, blocks of code. What is wrong with them is
`page_rules.py`'s business."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown.extensions.toc import slugify, unique
from markdown_it import MarkdownIt
from markdown_it.token import Token

from handbook.reference import reference_pages

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "handbook" / "reference"
"""Where the built site has the generated pages; no such folder is in the tree."""
MARKDOWN = MarkdownIt("commonmark").enable("table")
REQUEST = re.compile(r"<!-- request: (\w+) (\S+) -->")


@dataclass(frozen=True)
class Block:
    """A block of code, and the call that a comment before it names, if it is a request."""

    language: str
    text: str
    line: int
    request: tuple[str, str] | None = None


@dataclass(frozen=True)
class Page:
    """One page: where it lies, and what stands on it."""

    path: Path
    links: tuple[str, ...]
    inline_code: tuple[str, ...]
    blocks: tuple[Block, ...]
    anchors: frozenset[str]

    @property
    def name(self) -> str:
        """Its path in the tree."""
        return self.path.relative_to(ROOT).as_posix()


def page_paths() -> list[Path]:
    """List every page that somebody wrote."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@functools.cache
def read_page(path: Path) -> Page:
    """Take a written page apart."""
    return parse(path, path.read_text(encoding="utf-8"))


@functools.cache
def generated_pages() -> dict[Path, Page]:
    """Make the pages of the reference, and take them apart."""
    return {
        REFERENCE / f"{name}.md": parse(REFERENCE / f"{name}.md", text)
        for name, text in reference_pages().items()
    }


def parse(path: Path, text: str) -> Page:
    """Take a page apart."""
    tokens = MARKDOWN.parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    links = [str(token.attrs["href"]) for token in inline if token.type == "link_open"]
    images = [str(token.attrs["src"]) for token in inline if token.type == "image"]
    code = [token.content for token in inline if token.type == "code_inline"]
    return Page(path, (*links, *images), tuple(code), tuple(_blocks(tokens)), frozenset(_anchors(tokens)))


def _blocks(tokens: list[Token]) -> Iterator[Block]:
    request: tuple[str, str] | None = None
    for token in tokens:
        if token.type == "html_block":
            found = REQUEST.fullmatch(token.content.strip())
            request = (found[1], found[2]) if found else None
        elif token.type in ("fence", "code_block"):
            language = token.info.split()[0] if token.info else ""
            yield Block(language, token.content, (token.map or [0])[0] + 1, request)
            request = None


def _anchors(tokens: list[Token]) -> Iterator[str]:
    """Name the headings as the site's builder does, which is as GitHub does for all that we write."""
    taken: set[str] = set()
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            shown = "".join(child.content for child in token.children or () if child.type != "link_open")
            yield unique(slugify(shown, "-"), taken)
