"""How do equations become MathML, so that no script has to draw them?

In Markdown as GitHub shows it: a block fenced as `math`, or LaTeX between $` and `$ within a line.
"""

import re
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
WITHIN_A_LINE = r"\$`([^`]+)`\$"
BEFORE_FENCES = 30
"""Priority over the library's own handling of fenced blocks (25)."""
BEFORE_CODE = 195
"""Priority over its backticks (190)."""


class _Blocks(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return BLOCK.sub(self._stash, "\n".join(lines)).split("\n")

    def _stash(self, found: re.Match[str]) -> str:
        math = convert(" ".join(found[1].split()), display="block")
        return "\n\n" + self.md.htmlStash.store(f'<div class="equation">{math}</div>') + "\n\n"


class _WithinALine(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | str, int, int]:
        del data
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class Equations(Extension):
    """Python-Markdown's extension for both."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register both."""
        md.preprocessors.register(_Blocks(md), "equations", BEFORE_FENCES)
        md.inlinePatterns.register(_WithinALine(WITHIN_A_LINE, md), "equations", BEFORE_CODE)
