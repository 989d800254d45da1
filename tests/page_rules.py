"""What is wrong with a page: a link to nothing, a command that the parser refuses, code that cannot run.

Each rule gives complaints, one sentence each; a page without any is right.
"""

import ast
import functools
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from pydantic import ValidationError
from typer.main import get_command

from dmsae.cli import app
from dmsae.errors import InvalidConfig
from dmsae.service.planning import plan_distillations
from dmsae.service.probe_requests import ProbeRequest, refuse_foreign
from dmsae.service.requests import DistillationRequest, TrainingRequest
from dmsae.service.settings import Settings
from dmsae.service.sweeps import points_of
from tests.pages import REFERENCE, ROOT, Block, Page, generated_pages, read_page

SERVED = {"/", "/docs/handbook", "/openapi.json"}
"""What the API serves beside what its document names."""
ROOTS = [Path("/data")]
"""Below which the handbook's models and texts lie."""
SHELL = ("", "sh", "bash", "console")
STARTS = re.compile(
    r"(?:^[ ]*|&& |\|\| |\| |; |\$\(|\{ |   +)(?:\$ )?(?:[A-Z_]+=\S* )*"
    r"(?=(?:[\w./$\"{}-]*/)?(?:dmsae|make|curl|python -m) )",
    re.MULTILINE,
)
ENDS = re.compile(r" && | \|\| | \||; |\s{3,}| > |\)\"?$|\n", re.MULTILINE)
COMMENT = re.compile(r"(?:^|\s)# .*$", re.MULTILINE)
CALL = re.compile(r"\b(GET|POST|PATCH|DELETE|PUT) (/[\w{}/$.-]*)")
ADDRESS = re.compile(
    r"(?:https?://)?(?:localhost:8000|127\.0\.0\.1:8000|\$DMSAE_URL|\$\{DMSAE_URL[^}]*\})(/.*)"
)
VARIABLE = re.compile(r"\bDMSAE_[A-Z0-9_]+\b")
NO_SETTINGS = {"URL", "API_KEY", "PROFILE", "CHECKOUT", "ENV_FILE", "DEVICE"}
"""Read by the command line and by `deploy/worker.sbatch`."""
MODULE_FILE = re.compile(r"[\w/]+\.py")
PEERS = (ROOT / "tests" / "interop" / "constraints.txt").read_text()


def complaints(page: Page) -> list[str]:
    """Say all that is wrong with a page."""
    rules: Sequence[Callable[[Page], Iterator[str]]] = (links, calls, commands, code_blocks, names)
    return [f"{page.name}: {complaint}" for rule in rules for complaint in rule(page)]


def links(page: Page) -> Iterator[str]:
    """Say which links lead nowhere; those to other hosts are only looked at."""
    for link in page.links:
        if "://" in link:
            if not link.startswith("https://"):
                yield f"{link} is no https link"
            continue
        place, _, fragment = link.partition("#")
        target = (page.path.parent / place).resolve() if place else page.path
        if target.parent == REFERENCE:
            found = generated_pages().get(target)
        else:
            found = read_page(target) if target.is_file() and target.suffix == ".md" else None
        if found is None and not target.exists():
            yield f"{link} leads nowhere"
        elif fragment and (found is None or fragment not in found.anchors):
            yield f"{link}: there is no such part"


def calls(page: Page) -> Iterator[str]:
    """Say which calls the API does not have."""
    for text in (*page.inline_code, *(block.text for block in page.blocks if block.language in SHELL)):
        for method, path in CALL.findall(text):
            if find_call(method, path) is None:
                yield f"the API has no {method} {path}"


def commands(page: Page) -> Iterator[str]:
    """Say which commands cannot be meant: of `dmsae`, `make`, `curl`, `python -m`."""
    for block in page.blocks:
        if block.language in SHELL:
            for words in commands_in(block.text):
                yield from (f"line {block.line}: {found}" for found in refuse(words, is_whole=True))
    for text in page.inline_code:
        if re.match(r"(dmsae|make|python -m) [a-z]", text) and "..." not in text:
            yield from refuse(shlex.split(text), is_whole=False)


def code_blocks(page: Page) -> Iterator[str]:
    """Say which blocks of code cannot be read, or name what is not there."""
    for block in page.blocks:
        for complaint in _read_block(block):
            yield f"line {block.line}: {complaint}"


def names(page: Page) -> Iterator[str]:
    """Say which variables and which files of ours do not exist."""
    known = {name.upper() for name in Settings.model_fields} | NO_SETTINGS
    for text in (*page.inline_code, *(block.text for block in page.blocks)):
        for variable in VARIABLE.findall(text):
            if variable.removeprefix("DMSAE_") not in known and not page.name.startswith("docs/experiment"):
                yield f"{variable} is no setting"
    for text in page.inline_code:
        if MODULE_FILE.fullmatch(text) and text.rpartition("/")[2] not in module_files():
            yield f"there is no file {text}"


def commands_in(text: str) -> Iterator[list[str]]:
    """Give the commands of a block of shell that are ours to check, as words."""
    joined = COMMENT.sub("", re.sub(r"\\\n\s*", " ", text))
    for start in STARTS.finditer(joined):
        rest = joined[start.end() :]
        for end in [*(found.start() for found in ENDS.finditer(rest)), len(rest)]:
            try:
                yield shlex.split(rest[:end])
                break
            except ValueError:
                continue  # the end stood within quotes


def refuse(words: Sequence[str], *, is_whole: bool) -> Iterator[str]:
    """Say why a command cannot be meant; one that stands in a sentence may lack its arguments."""
    program, rest = words[0].rpartition("/")[2].strip('"'), list(words[1:])
    if program == "dmsae":
        yield from _refuse_dmsae(rest, is_whole=is_whole)
    elif program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        asked = {word for word in rest if "=" not in word}
        yield from (f"make {word}: there is no such target" for word in sorted(asked - targets))
    elif program == "python":
        if importlib.util.find_spec(rest[1]) is None:
            yield f"python -m {rest[1]}: there is no such module"
    elif program == "curl":
        yield from _refuse_curl(rest)


def find_call(method: str, path: str) -> Any:
    """Give the operation of the API that a call of a page means; None if there is none."""
    wanted = path.split("?")[0].rstrip("/.").split("/")
    for known, operations in openapi()["paths"].items():
        parts = known.split("/")
        fits = len(parts) == len(wanted) and all(map(_fits, parts, wanted))
        if fits and method.lower() in operations:
            return operations[method.lower()]
    return True if path in SERVED and method == "GET" else None


def refuse_plan(path: str, body: Any) -> Iterator[str]:
    """Say what the service has against a request that keeps to the schema, as far as no job need be there."""
    try:
        if path == "/distillations":
            plan_distillations(DistillationRequest.model_validate(body), allowed_roots=ROOTS)
        elif path == "/trainings":
            points_of(TrainingRequest.model_validate(body))
        elif path == "/probes":
            refuse_foreign(ProbeRequest.model_validate(body))
    except (ValidationError, InvalidConfig) as error:
        yield f"POST {path}: {error}"


def _fits(part: str, word: str) -> bool:
    """Tell whether a word can stand for a part of a path: `{id}`, `ID`, `$ID` or an id for a variable one."""
    if part.startswith("{") and part.count("{") == 1 and part.endswith("}"):
        return bool(re.match(r"[{$A-Z]", word)) or "_" in word
    return re.fullmatch(re.sub(r"\\{\w+\\}", r"[\\w{}]+", re.escape(part)), word) is not None


def refuse_body(method: str, path: str, body: Any) -> Iterator[str]:
    """Say what the schema of a call has against a body."""
    operation = find_call(method, path)
    if operation is None or "requestBody" not in operation:
        yield f"{method} {path} takes no body"
        return
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    whole = {**schema, "components": openapi()["components"]}
    for error in jsonschema.Draft202012Validator(whole).iter_errors(body):
        yield f"{method} {path}: {error.json_path}: {error.message[:300]}"


@functools.cache
def command_line() -> Any:
    """Make the parser of `dmsae`."""
    return get_command(app)


@functools.cache
def openapi() -> Any:
    """Read the API's document."""
    return json.loads((ROOT / "docs" / "openapi.json").read_text())


@functools.cache
def module_files() -> frozenset[str]:
    """Name every file of Python in the tree."""
    rooms = ("api", "bench", "dmsae", "experiments", "handbook", "migrations", "tests", "worker")
    return frozenset(file.name for room in rooms for file in (ROOT / room).rglob("*.py"))


def _refuse_dmsae(words: Sequence[str], *, is_whole: bool) -> Iterator[str]:
    command = command_line()
    context, name, rest = None, "dmsae", list(words)
    try:
        while True:
            is_group = hasattr(command, "commands")
            context = command.make_context(
                name, list(rest), parent=context, resilient_parsing=not is_whole and not is_group
            )
            if not is_group:
                break
            rest = [*context._protected_args, *context.args]
            name, command, rest = command.resolve_command(context, rest)
        known = {name for option in command.get_params(context) for name in _spellings(option)}
        unknown = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in known]
        if unknown and not is_whole:
            yield f"dmsae {' '.join(words)}: no such option: {unknown[0]}"
    except Exception as error:  # noqa: BLE001 - what the parser raises has no public base
        if type(error).__name__ not in ("Exit", "NoArgsIsHelpError"):
            said = getattr(error, "format_message", error.__str__)()
            yield f"dmsae {' '.join(words)}: {said}"


def _spellings(option: Any) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def _refuse_curl(words: Sequence[str]) -> Iterator[str]:
    method, body, path = "GET", None, None
    given = iter(words)
    for word in given:
        if word in ("-X", "--request"):
            method = next(given)
        elif word in ("-d", "--data"):
            body = re.sub(r"\$\w+", "job_1", next(given))
        elif word in ("-H", "--header", "-o"):
            next(given)
        elif found := ADDRESS.fullmatch(word):
            path = found[1]
    if path is None:
        yield f"curl {' '.join(words)}: names no address of the API"
    elif find_call(method, path) is None:
        yield f"curl: the API has no {method} {path}"
    elif body is not None:
        yield from refuse_body(method, path, json.loads(body))


def _read_block(block: Block) -> Iterator[str]:
    text = block.text
    try:
        if block.language == "json":
            value = json.loads(text)
            if block.request is not None:
                yield from [*refuse_body(*block.request, value)] or refuse_plan(block.request[1], value)
        elif block.language == "yaml":
            list(yaml.parse(text))  # no further: a part of a file may name what the file defines
        elif block.language == "python" or text.startswith(("from ", "import ")):
            yield from _missing_imports(ast.parse(text))
        elif not block.language:
            for part in re.split(r"\n\s*\n", text):
                if part.lstrip().startswith("from ") and " import " in part:
                    yield from _missing_imports(ast.parse(part))
    except (ValueError, SyntaxError, yaml.YAMLError) as error:
        yield f"{block.language or 'code'} that cannot be read: {error}"


def _missing_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (complaint for name in node.names for complaint in _missing(name.name, ()))
        elif isinstance(node, ast.ImportFrom):
            yield from _missing(node.module or "", [name.name for name in node.names])


def _missing(module: str, wanted: Sequence[str]) -> Iterator[str]:
    """Look a module up here, or, where it is a peer's that is not installed here, among the peers' pins."""
    distribution = module.split(".")[0].replace("_", "-")
    if importlib.util.find_spec(module.split(".")[0]) is None:
        if f"\n{distribution}==" not in PEERS:
            yield f"import {module}: there is no such module"
        return
    found = importlib.import_module(module)
    yield from (f"{module} has no {name}" for name in wanted if not hasattr(found, name))
