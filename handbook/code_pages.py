"""The reference of classes: the Python client, errors, variables, metrics."""

import inspect
import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from prometheus_client.metrics_core import Metric
from pydantic_core import PydanticUndefined

from api.contract import NOWHERE
from api.errors import HTTP_CODES, STATUSES
from api.main import create_app
from api.metrics import ProcessNumbers, ServiceNumbers
from api.web_page import FOLDER
from dmsae.client.client import Client
from dmsae.errors import FAILURES, OUTAGES, DmsaeError
from dmsae.service.fresh_numbers import FreshNumbers
from dmsae.service.queue_metrics import QueueNumbers
from dmsae.service.settings import Settings, settings_from
from handbook.markdown import code, page, table


def client_page() -> str:
    """Give every method of the client, by what it is asked of."""
    client = Client("http://127.0.0.1:1")
    try:
        asked = {"client": client, **{f"client.{name}": part for name, part in _parts(client)}}
        parts = [
            f"## {name}\n\n{_doc(type(part))}\n\n" + "\n\n".join(_methods(name, type(part)))
            for name, part in asked.items()
        ]
    finally:
        client.close()
    head = (
        "`from dmsae.client.client import Client, AsyncClient`. An `AsyncClient` has the same methods: await "
        "what a `Client` gives, and go through its rows with `async for`. A `Client` opens with `with`, the "
        "other with `async with`."
    )
    return page("Python client", "`dmsae/client/`", head, *parts)


def errors_page() -> str:
    """Give every code of a problem document, and every way in which a cycle can fail."""
    told = {name: (status, f"{HTTPStatus(status).phrase}.") for status, name in HTTP_CODES.items()}
    for kind in reversed(list(_classes(DmsaeError))):
        told[kind.code] = (_status(kind), inspect.getdoc(kind) or "")
    rows = [(code(name), str(status), text) for name, (status, text) in sorted(told.items())]
    told_of = json.loads((FOLDER / "failures.json").read_text(encoding="utf-8"))
    failures = [
        (code(name), told_of[name]["means"], told_of[name]["do"], _retryable(name)) for name in FAILURES
    ]
    return page(
        "Errors",
        "`dmsae/errors.py` and `api/errors.py`",
        "Match the code, never the words. A refusal of settings names field, value and rule in `errors`. Two "
        "more codes: `malformed_json` (400, a body that is no JSON) and `invalid_request` (422, a query that "
        "cannot be).",
        "## Codes of problem documents\n\n" + table(("code", "status", "means"), rows),
        "## Codes of failed cycles\n\nWhat stands in a job's `error.code`, or in `error.cause` where "
        "attempts were exhausted; `error.message` names the values. What is retryable is "
        "tried again by itself, a few times; an outage after a longer wait.\n\n"
        + table(("code", "means", "what to do", "retryable"), failures),
    )


def _retryable(failure: str) -> str:
    if not FAILURES[failure]:
        return "no"
    return "yes, an outage" if failure in OUTAGES else "yes"


def variables_page() -> str:
    """Give every variable that API, worker and sweeper read."""
    rows = []
    for name, field in Settings.model_fields.items():
        is_needed = field.default is PydanticUndefined
        default = "*needed*" if is_needed else _shown(field.default)
        rows.append((code(f"DMSAE_{name.upper()}"), default, field.description or ""))
    more = "More is said of each under [Operations](../../operations.md#every-variable)."
    return page("Variables", "`dmsae/service/settings.py`", more, table(("variable", "default", "is"), rows))


def metrics_page() -> str:
    """Give what `GET /metrics` tells."""
    metrics = create_app(settings_from(NOWHERE)).state.metrics
    counted = [metrics.requests, metrics.seconds, metrics.in_progress]
    collectors = [ServiceNumbers(_Quiet(), lease_s=1), ProcessNumbers(_Unused(), _Unused())]
    families = [
        *(family for metric in counted for family in metric.describe()),
        *(family for collector in collectors for family in collector.collect()),
    ]
    rows = {family.name: (code(_name(family)), family.type, family.documentation) for family in families}
    more = "How they are read, and the alerts on them: [Operations](../../operations.md#metrics)."
    return page(
        "Metrics",
        "`api/metrics.py`",
        more,
        table(("metric", "kind", "is"), [rows[name] for name in sorted(rows)]),
    )


class _Quiet(FreshNumbers):
    """A service in which nothing is and nothing ever was."""

    def __init__(self) -> None:
        """Ask nobody."""

    def read(self) -> QueueNumbers:
        """Give nothing of everything."""
        lists: dict[str, Any] = dict.fromkeys(set(QueueNumbers.__annotations__) - {"is_paused"}, ())
        return QueueNumbers(**lists, is_paused=False)


class _Unused:
    """A pool and a producer that nobody used."""

    n_failed = 0

    def pool_use(self) -> Any:
        """Give nothing in use."""
        return SimpleNamespace(n_in_use=0, n_idle=0, n_most=0)


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _parts(client: Client) -> Iterator[tuple[str, Any]]:
    for name, part in vars(client).items():
        if not name.startswith("_"):
            yield name, part


def _methods(name: str, kind: type) -> Iterator[str]:
    for method, found in inspect.getmembers_static(kind):
        function = getattr(found, "steps", found)
        if method.startswith("_") or not callable(function):
            continue
        signature = re.sub(r"\(self(, /)?(, )?", "(", str(inspect.signature(function))).partition(" -> ")[0]
        signature = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", signature)
        yield f"### {name}.{method}\n\n```text\n{name}.{method}{signature}\n```\n\n{_doc(function)}"


def _doc(thing: Any) -> str:
    """Give a docstring with its `Raises:` as a list."""
    text = inspect.getdoc(thing) or ""
    return re.sub(r"^    (\w+): ", r"- `\1`: ", text.replace("Raises:\n", "Raises:\n\n"), flags=re.MULTILINE)


def _classes(kind: type[DmsaeError]) -> Iterator[type[DmsaeError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ in ("api.errors", "dmsae.errors"):
            yield from _classes(below)


def _status(kind: type[DmsaeError]) -> int:
    return next(STATUSES[base] for base in kind.__mro__ if base in STATUSES)


def _shown(default: Any) -> str:
    if default is None or default == []:
        return "none"
    return "a folder for temporary files" if hasattr(default, "parts") else code(_plain(default))


def _plain(default: Any) -> str:
    return ",".join(default) if isinstance(default, list) else json.dumps(default).strip('"')
