"""Who is asking: keys prove it, and nothing but a hash is kept."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from dmsae.errors import InvalidConfig, KeyExpired, KeyRevoked, NotFound, Unauthorized
from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.tables import ApiKey

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


def test_a_key_proves_its_owner_and_is_stored_nowhere(database: Database) -> None:
    made, plaintext = database.run(lambda session: keys.create_key(session, "ada", name="laptop"))
    with database.session_scope() as session:
        caller = keys.identify(session, plaintext, is_key_required=True)
        stored = session.execute(text("SELECT * FROM api_keys")).one()
    assert (caller.name, caller.role, caller.key_id) == ("ada", "submitter", made.id)
    assert caller.changes_of == made.owner_id
    assert plaintext.startswith("dmsae_")
    assert plaintext.startswith(stored.prefix)
    assert len(stored.prefix) < len(plaintext) / 4
    assert not any(plaintext in str(value) for value in stored)


def test_unknown_keys_prove_nothing_and_those_that_were_valid_once_are_told_so(database: Database) -> None:
    def make(session: Session) -> dict[str, type[Unauthorized]]:
        _, expired = keys.create_key(session, "ada", expires_at=YESTERDAY)
        key, revoked = keys.create_key(session, "ada", expires_at=YESTERDAY)
        keys.revoke_key(session, key.id)
        keys.revoke_key(session, key.id)
        unknown = dict.fromkeys(("dmsae_unknown", "", "\ud800", revoked[:-1], revoked.lower()), Unauthorized)
        return {expired: KeyExpired, revoked: KeyRevoked, **unknown}

    for plaintext, refusal in database.run(make).items():
        with database.session_scope() as session, pytest.raises(Unauthorized) as refused:
            keys.identify(session, plaintext, is_key_required=False)
        assert refused.type is refusal


def test_whether_a_key_is_right_is_decided_in_constant_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, plaintext = database.run(lambda session: keys.create_key(session, "ada"))
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda *hashes: compared.append(hashes) or False)
    with database.session_scope() as session, pytest.raises(Unauthorized):
        keys.identify(session, plaintext, is_key_required=True)
    assert compared == [(made.key_hash, made.key_hash)]


def test_its_use_is_noted_once_a_minute_at_most(database: Database) -> None:
    made, plaintext = database.run(lambda session: keys.create_key(session, "ada"))

    def used_at() -> datetime | None:
        database.run(lambda session: keys.identify(session, plaintext, is_key_required=True))
        return database.run(lambda session: session.get_one(ApiKey, made.id).last_used_at)

    first = used_at()
    assert first is not None
    assert used_at() == first
    with database.session_scope() as session:
        session.execute(update(ApiKey).values(last_used_at=first - timedelta(minutes=2)))
    assert used_at() > first


def test_two_requests_with_one_key_do_not_wait_for_each_other(database: Database) -> None:
    made, plaintext = database.run(lambda session: keys.create_key(session, "ada"))
    with database.session_scope() as first, database.session_scope() as second:
        second.execute(text("SET LOCAL lock_timeout = '1s'"))
        for session in (first, second):
            assert keys.identify(session, plaintext, is_key_required=True).key_id == made.id


def test_the_service_is_open_until_the_first_key_and_never_again(database: Database) -> None:
    with database.session_scope() as session:
        caller = keys.identify(session, None, is_key_required=False)
        assert (caller.name, caller.is_open, caller.is_admin) == ("local", True, True)
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


def test_an_unknown_role_is_refused(database: Database) -> None:
    with pytest.raises(InvalidConfig, match="reader, submitter, admin"), database.session_scope() as session:
        keys.create_key(session, "ada", role="owner")
