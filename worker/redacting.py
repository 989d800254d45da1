"""Which words must not leave this process? Secrets are cut out of whatever a trainer printed."""

import os
import re
from collections.abc import Iterable
from typing import Any

from dmsae.service.logs import HIDDEN, redact
from dmsae.service.plain_json import plain_text
from dmsae.service.settings import Settings

LEAST_SECRET_CHARS = 6
"""Shorter values would blank out ordinary words."""

WAYS_TO_THE_HUB = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")
"""Addresses that a trainer is given, and that may hold a password."""


class Redactor:
    """Hides known secrets and whatever looks like one."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = sorted({s for s in secrets if len(s) >= LEAST_SECRET_CHARS}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None
        self.longest = max((len(secret) for secret in known), default=0)

    def __call__(self, text: str) -> str:
        """Give the text without secrets, in characters that Postgres takes."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return plain_text(redact(text))

    def all_of(self, value: Any) -> Any:
        """Give a JSON value whose texts, names included, hold no secret."""
        match value:
            case str():
                return self(value)
            case dict():
                return {self(str(name)): self.all_of(item) for name, item in value.items()}
            case list() | tuple():
                return [self.all_of(item) for item in value]
        return value


def make_redactor(settings: Settings) -> Redactor:
    """Make the redactor that knows this worker's own secrets."""
    urls = (settings.database_url.get_secret_value(), settings.broker_url.get_secret_value())
    ways = [os.environ.get(name, "") for name in WAYS_TO_THE_HUB]
    found = [re.search(r"://[^/@]*:([^/@]+)@", url) for url in (*urls, *ways)]
    passwords = [match.group(1) for match in found if match is not None]
    token = os.environ.get("HF_TOKEN", "")
    return Redactor([*urls, *passwords, settings.s3_secret_key.get_secret_value(), token])
