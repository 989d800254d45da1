"""How does a terminal show the texts at which a latent fires?"""

from typing import Any

from rich.console import Console
from rich.text import Text

N_STRONGEST = 5
N_EACH_SIDE = 10
"""Tokens around the one that a snippet was taken for: about a line."""
SHADES = ("", "on grey19", "on #5f3a00", "on #875f00 bold", "on #d78700 bold")
"""From where a latent is silent to where it is strongest."""


def print_snippets(console: Console, snippets: dict[str, Any]) -> None:
    """Print density and logit lens, the strongest snippets, and a random one of each decile, shaded."""
    seen = f"fires at {snippets['n_firings']} of {snippets['n_tokens']} tokens"
    console.print(f"cycle {snippets['cycle_index']} of {snippets['job_id']}: {seen}", highlight=False)
    for kind in ("promoted", "suppressed"):
        tokens = " ".join(repr(visible(entry["token"])) for entry in snippets["logit_lens"][kind])
        console.print(Text(f"{kind}: {tokens}"))
    most = snippets["max_activation"]
    each = [(decile["decile"], one) for decile in snippets["deciles"] for one in decile["snippets"]]
    strongest = [entry for entry in each if entry[1]["kind"] == "strongest"][:N_STRONGEST]
    by_decile = {decile: one for decile, one in reversed(each) if one["kind"] == "random"}
    for decile, one in [*strongest, *sorted(by_decile.items(), reverse=True)]:
        label = f"{one['kind']:<9} {decile:>2}  {one['activations'][one['peak']]:<8.4g} "
        console.print(Text(label).append_text(shaded(one, most)))


def shaded(snippet: dict[str, Any], most: float) -> Text:
    """Give a snippet's tokens around its peak, each shaded by how strong the latent is there."""
    peak, shown = snippet["peak"], Text()
    start = max(0, peak - N_EACH_SIDE)
    pairs = list(zip(snippet["tokens"], snippet["activations"], strict=True))
    for token, act in pairs[start : peak + N_EACH_SIDE + 1]:
        share = 0.0 if not act or most <= 0 else min(1.0, act / most)
        shade = 0 if share == 0 else 1 + min(len(SHADES) - 2, int(share * (len(SHADES) - 1)))
        shown.append(visible(token), style=SHADES[shade])
    return shown


def visible(token: str) -> str:
    """Write out what a terminal would obey or not show: line ends, control characters, odd spaces."""
    written = {"\n": "\u21b5", "\t": "\u21e5"}
    return "".join(
        character if character.isprintable() else written.get(character, f"\\u{ord(character):04x}")
        for character in token
    )
