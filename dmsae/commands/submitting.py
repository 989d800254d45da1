"""`dmsae submit` and `dmsae upload`, over HTTP."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dmsae.commands.options import DEFAULT_DATA, AsJson, Data, Key, Url, connect, tell
from dmsae.errors import BadRequest, NotFound


def submit_job(
    settings: Annotated[str, typer.Argument(help="Name of a preset, or a JSON file of settings.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would be.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Submit a distillation, and print its id."""
    is_file = settings.endswith(".json") or Path(settings).is_file()
    body = _read_settings(Path(settings)) if is_file else {"preset": settings}
    with connect(url, key, data) as client:
        answer = client.distillations.create(body, is_dry_run=dry_run)
    text = json.dumps(answer, indent=2) if dry_run else answer.get("id", answer.get("group_id"))
    tell(as_json, str(text), answer)


def upload_file(
    file: Annotated[
        Path, typer.Argument(help="A .txt, .jsonl or .parquet, or one of these with .gz or .zst.")
    ],
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Put a file of text into the store, and print the key by which a job names it."""
    if not file.is_file():
        raise NotFound(f"There is no file {str(file)!r}.")
    with connect(url, key, data) as client:
        upload = client.uploads.create(file)
    shown = {name: upload[name] for name in ("id", "key", "filename", "size_bytes", "kept_days")}
    tell(as_json, upload["key"], shown)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {str(path)!r}.") from error
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path}: must be a JSON file ({error}).") from error
    if not isinstance(settings, dict):
        raise BadRequest(f"{path}: must be one JSON object of settings.")
    return settings
