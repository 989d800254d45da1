"""Is the API of this container well? `python -m api.probe /readyz` asks it over loopback and exits 0 or 1."""

import argparse
import sys

import httpx

from dmsae.service.settings import load_settings

TIMEOUT_S = 8.0
SHOWN = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on
"""Where to ask an API that listens everywhere."""


def main(arguments: list[str] | None = None) -> None:
    """Exit with status 0 if it answers 200, else with 1 and a sentence."""
    parser = argparse.ArgumentParser(prog="python -m api.probe", description=__doc__)
    parser.add_argument(
        "path", nargs="?", default="/healthz", choices=("/healthz", "/readyz"), help="default: /healthz"
    )
    path = parser.parse_args(arguments).path
    settings = load_settings()
    host = SHOWN.get(settings.host, settings.host)
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{settings.port}{path}"
    try:
        answer = httpx.get(url, timeout=TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        sys.exit(f"{url} does not answer: {type(error).__name__}")
    if answer.status_code != 200:
        sys.exit(f"{url} answers {answer.status_code}: {answer.text}")


if __name__ == "__main__":
    main()
