"""Who is asking: keys prove it, and nothing but a hash is kept."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from dmsae.errors import InvalidConfig, NotFound, Unauthorized
from dmsae.service import keys
from dmsae.service.database import Database

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


def test_a_key_proves_its_owner_and_is_stored_nowhere(database: Database) -> None:
    _, plaintext = database.run(lambda session: keys.create_key(session, "ada", name="laptop"))
    with database.session_scope() as session:
        owner, is_open = keys.identify(session, plaintext, is_key_required=True)
        stored = session.execute(text("SELECT * FROM api_keys")).one()
    assert (owner.name, is_open) == ("ada", False)
    assert plaintext.startswith("dmsae_")
    assert not any(plaintext in str(value) for value in stored)


def test_expired_revoked_and_unknown_keys_prove_nothing(database: Database) -> None:
    def make(session):  # type: ignore[no-untyped-def]
        _, expired = keys.create_key(session, "ada", expires_at=YESTERDAY)
        key, revoked = keys.create_key(session, "ada")
        keys.revoke_key(session, key.id)
        keys.revoke_key(session, key.id)
        return [expired, revoked, "dmsae_unknown", ""]

    for plaintext in database.run(make):
        with database.session_scope() as session:
            assert keys.owner_of_key(session, plaintext) is None
            with pytest.raises(Unauthorized):
                keys.identify(session, plaintext, is_key_required=False)


def test_the_service_is_open_until_the_first_key_and_never_again(database: Database) -> None:
    with database.session_scope() as session:
        owner, is_open = keys.identify(session, None, is_key_required=False)
        assert (owner.name, is_open) == ("local", True)
        with pytest.raises(Unauthorized):
            keys.identify(session, None, is_key_required=True)
        key, _ = keys.create_key(session, "ada")
        keys.revoke_key(session, key.id)
        with pytest.raises(Unauthorized):
            keys.identify(session, None, is_key_required=False)


def test_an_owner_is_made_once(database: Database) -> None:
    first, again = (database.run(lambda session: keys.ensure_owner(session, "ada").id) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("name", ["", "a b", "a\0", "-a", "x" * 65, "ä"])
def test_an_owners_name_must_be_plain(database: Database, name: str) -> None:
    with database.session_scope() as session, pytest.raises(InvalidConfig, match="owner"):
        keys.ensure_owner(session, name)


def test_an_unknown_key_cannot_be_revoked(database: Database) -> None:
    with pytest.raises(NotFound), database.session_scope() as session:
        keys.revoke_key(session, "key_none")
