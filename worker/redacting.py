"""Which words must not leave this process? Secrets are cut out of whatever a trainer printed."""

import os
import re
from collections.abc import Iterable

from dmsae.service.logs import HIDDEN, redact
from dmsae.service.plain_json import plain_text
from dmsae.service.settings import Settings

LEAST_SECRET_CHARS = 6
"""Shorter values would blank out ordinary words."""


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


def make_redactor(settings: Settings) -> Redactor:
    """Make the redactor that knows this worker's own secrets."""
    urls = (settings.database_url.get_secret_value(), settings.broker_url.get_secret_value())
    passwords = [match.group(1) for url in urls if (match := re.search(r"://[^/@]*:([^/@]+)@", url))]
    token = os.environ.get("HF_TOKEN", "")
    return Redactor([*urls, *passwords, settings.s3_secret_key.get_secret_value(), token])
