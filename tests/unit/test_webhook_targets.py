"""Webhooks go to public addresses over HTTPS, and are signed so that a receiver can tell."""

import base64
import hashlib
import hmac

import pytest

from dmsae.errors import InvalidConfig
from dmsae.service.webhook_signing import derive_secret, sign
from dmsae.service.webhook_targets import find_target, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - refused
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_an_address_of_this_machine_or_a_private_network_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/x",
        "ftp://8.8.8.8/x",
        "https://",
        "https:///x",
        "https://user:word@8.8.8.8/",
        "https://8.8.8.8/#part",
        "https://8.8.8.8:99999/",
        "https://[::1/",
        "https://localhost/",
        "https://127.1/",
        "https://2130706433/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:127.0.0.1]/",
        "https://8.8.8.8/a b",
        "https://8.8.8.8/\n",
        "https://" + "a" * 300 + ".example/",
        "https://\ud800.example/",
        "nothing",
    ],
)
def test_a_url_that_is_none_or_leads_inside_is_refused_by_field_and_rule(url: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        find_target(url, allow_private=False)
    assert refused.value.problems[0].param == "url"
    assert refused.value.problems[0].rule


def test_a_target_keeps_the_name_and_the_address_that_was_looked_at() -> None:
    assert find_target("https://8.8.8.8/in?a=1", allow_private=False) == (
        "https",
        "8.8.8.8",
        443,
        "/in?a=1",
        "8.8.8.8",
    )
    inside = find_target("http://localhost:81/", allow_private=True)
    assert (inside.scheme, inside.host, inside.port) == ("http", "localhost", 81)
    assert not is_public(inside.address)


def test_where_private_addresses_are_allowed_public_ones_are_still_told_by_https_alone() -> None:
    with pytest.raises(InvalidConfig) as refused:
        find_target("http://8.8.8.8/", allow_private=True)
    assert "https://" in refused.value.problems[0].rule
    assert find_target("https://8.8.8.8/", allow_private=True).scheme == "https"


def test_a_signature_is_what_the_standard_says_and_each_webhook_has_its_secret() -> None:
    secret = derive_secret("k" * 20, "hook_1")
    headers = sign(secret, "msg_1", 1_700_000_000, b'{"a": 1}')
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = hmac.new(key, b'msg_1.1700000000.{"a": 1}', hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()
    assert len(key) == 32
    assert derive_secret("k" * 20, "hook_2") != secret != derive_secret("l" * 20, "hook_1")
