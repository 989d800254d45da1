"""What MkDocs asks for while it builds: the generated reference, equations, and files that pages link to."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from handbook.equations import Equations
from handbook.reference import reference_pages

ROOT = Path(__file__).parents[1]
FILE_LINK = re.compile(r"\]\((\.\./(?:\.\./)?)([\w./@-]+)\)")
"""A link of a page to a file of the repository outside of `docs/`."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Teach Markdown equations."""
    config.markdown_extensions.append(Equations())  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, made from the code, and the repository's files that pages link to."""
    for name, text in reference_pages().items():
        files.append(File.generated(config, f"handbook/reference/{name}.md", content=text))
    for name in sorted(_linked_files(Path(config.docs_dir))):
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"files/{name}.txt", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Point links to files of the repository at their copies in the site."""
    depth = page.file.src_uri.count("/")

    def moved(found: re.Match[str]) -> str:
        is_outside = found[1].count("../") > depth
        return f"]({'../' * depth}files/{found[2]}.txt)" if is_outside else found[0]

    return FILE_LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Let what may have to be scrolled sideways be reached by keyboard."""
    html = html.replace("<pre>", '<pre tabindex="0">').replace(
        '<div class="equation">', '<div class="equation" tabindex="0">'
    )
    return html.replace("<table>", '<div class="wide" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )


def _linked_files(docs: Path) -> set[str]:
    found = set()
    for page in docs.rglob("*.md"):
        depth = len(page.relative_to(docs).parts) - 1
        for link in FILE_LINK.finditer(page.read_text(encoding="utf-8")):
            if link[1].count("../") > depth:
                found.add(link[2])
    return {name for name in found if (ROOT / name).is_file()}
