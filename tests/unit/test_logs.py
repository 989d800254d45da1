"""No secret reaches a log."""

import pytest

from dmsae.service.logs import HIDDEN, redact


@pytest.mark.parametrize(
    "text",
    [
        "redis://:s3cr3tvalue@host:6379/0",
        "postgresql+psycopg://dmsae:s3cr3tvalue@host/dmsae",
        "Authorization: Bearer s3cr3tvalue",
        "HF_TOKEN=s3cr3tvalue",
        "{'password': 's3cr3tvalue'}",
        "DMSAE_S3_SECRET_KEY=s3cr3tvalue",
        "http://h/b/k?X-Amz-Signature=s3cr3tvalue&x=1",
        "hf_s3cr3tvalueAAAAAAAAAAA is the token",
        "dmsae_s3cr3tvalueAAAAAAAAAAA",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    shown = redact(text)
    assert "s3cr3tvalue" not in shown
    assert HIDDEN in shown


@pytest.mark.parametrize(
    "text", ["n_tokens=512, eos_token: </s>", "loss 0.31 at step 7", "http://host:80/path"]
)
def test_everything_else_stays(text: str) -> None:
    assert redact(text) == text
