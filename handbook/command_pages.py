"""The reference of what one types: `dmsae` from its own parser, `make` from the Makefile."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from dmsae.cli import app
from handbook.markdown import code, page, table

ROOT = Path(__file__).parents[1]
TARGET = re.compile(r"^([a-z]+):.*?## (.*)$", re.MULTILINE)


def command_line_page() -> str:
    """Give every command, with its arguments and options."""
    group: Any = get_command(app)
    root = group.make_context("dmsae", [], resilient_parsing=True)
    about = (group.help or "").replace("\b\n", "")
    head = f"```text\n{about.strip()}\n```"
    shared = "Before every command:\n\n" + _parameters(group, root)
    parts = [_part(command, context) for command, context in _commands(group, root)]
    return page("Command line", "the parser of `dmsae`", head, shared, *parts)


def make_page() -> str:
    """Give every target of the Makefile that says what it does."""
    targets = TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8"))
    rows = [(code(f"make {name}"), text) for name, text in targets]
    return page("Make", "the Makefile", table(("command", "does"), rows))


def _commands(group: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    for name in sorted(group.commands):
        command = group.commands[name]
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        if hasattr(command, "commands"):
            yield from _commands(command, inner)
        else:
            yield command, inner


def _part(command: Any, context: Any) -> str:
    usage = command.get_usage(context).removeprefix("Usage: ")
    said = f"## {context.command_path}\n\n{command.help}\n\n```text\n{usage}\n```"
    return f"{said}\n\n{_parameters(command, context)}"


def _parameters(command: Any, context: Any) -> str:
    found = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [(code(" ".join(record[0].split())), record[1]) for record in found if record is not None]
    return table(("parameter", "is"), [row for row in rows if row[0] != "`--help`"])
