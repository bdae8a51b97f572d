"""Who somebody is: guest sessions, JWTs, and sessions that were ended."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis.asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from tornadochat.auth import Authenticator, load_secrets, redacted
from tornadochat.errors import HandshakeError, StartError
from tornadochat.settings import Settings

SECRET = "s" * 64
JWT_KEY = "k" * 32


def make(**changed: Any) -> Authenticator:
    return Authenticator(Settings(**changed), [SECRET])


def token(
    key: Any = JWT_KEY, algorithm: str = "HS256", headers: dict[str, str] | None = None, **claims: Any
) -> str:
    claims = {"sub": "42", "name": "Ada", "exp": time.time() + 60, **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)


def status_of(authenticator: Authenticator, **given: Any) -> int:
    with pytest.raises(HandshakeError) as found:
        authenticator.authenticate(**given)
    return found.value.status


def test_a_guest_comes_back_as_the_same_user_by_token_or_cookie() -> None:
    authenticator = make()
    first = authenticator.authenticate(name="  Ada ")
    assert first.user.name == "Ada" and first.user.id.startswith("u_") and first.rooms is None
    assert authenticator.authenticate(token=first.session).user == first.user
    assert authenticator.authenticate(cookie=first.session).user == first.user
    assert authenticator.authenticate(authorization=f"Bearer {first.session}").user == first.user
    assert authenticator.authenticate(name="Ada").user.id != first.user.id


def test_a_token_that_was_changed_or_signed_by_another_is_refused() -> None:
    good = make().new_guest("Ada").session
    other = Authenticator(Settings(), ["another secret"]).new_guest("Ada").session
    for bad in (good[:-1] + ("0" if good[-1] != "0" else "1"), other, "x", "2|1:0|", "\x00", "é", "a" * 9000):
        assert status_of(make(), token=bad) == 401


def test_a_secret_that_the_store_lost_stays_good_beside_the_one_that_was_made_meanwhile(store_url: str) -> None:
    settings = Settings(redis_prefix=f"auth-{secrets.token_hex(4)}")

    async def load(known: Sequence[str] = ()) -> tuple[list[str], bool]:
        async with redis.asyncio.Redis.from_url(store_url) as store:
            return await load_secrets(store, settings, known)

    async def scenario() -> None:
        first, _ = await load()
        assert await load() == (first, False) == await load(first)
        old = Authenticator(settings, first).new_guest("Ada")
        async with redis.asyncio.Redis.from_url(store_url) as store:
            await store.delete(f"{settings.redis_prefix}:secret", f"{settings.redis_prefix}:secrets")
        newcomer, _ = await load()  # a worker that starts before the others have put theirs back
        assert newcomer != first
        assert await load(first) == ([*newcomer, *first], True)
        assert await load(newcomer) == ([*newcomer, *first], False)
        both = Authenticator(settings, [*newcomer, *first])
        assert both.authenticate(token=old.session).user == old.user
        assert Authenticator(settings, newcomer).read_session(both.new_guest("Bob").session) is not None

    asyncio.run(scenario())


def test_a_session_expires_and_is_renewed_after_half_of_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = make(session_seconds=1000)
    first = authenticator.new_guest("Ada")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 400)
    assert authenticator.read_session(first.session) == first._replace(expires=pytest.approx(now + 1000, abs=5))
    monkeypatch.setattr(time, "time", lambda: now + 600)
    renewed = authenticator.read_session(first.session)
    assert renewed is not None and renewed.session != first.session and renewed.expires > now + 1500
    monkeypatch.setattr(time, "time", lambda: now + 1100)
    assert authenticator.read_session(first.session) is None
    assert authenticator.read_session(renewed.session) is not None


def test_nobody_comes_in_without_a_name_or_with_a_bad_one() -> None:
    assert status_of(make()) == 401
    assert status_of(make(), name="") == 400
    assert status_of(make(), name="a\nb") == 400


def test_sessions_that_were_ended_stay_ended_and_later_ones_hold() -> None:
    authenticator = make()
    first = authenticator.new_guest("Ada")
    authenticator.end(first.user.id, time.time() + 0.001)
    assert status_of(authenticator, token=first.session) == 401
    time.sleep(0.01)
    again = authenticator.rename(first, "Ada")
    assert authenticator.authenticate(token=again.session).user == first.user


def test_required_takes_jwts_only() -> None:
    guest = make().new_guest("Ada").session
    strict = make(auth="required", jwt_key=JWT_KEY)
    assert status_of(strict, name="Ada") == 401
    assert status_of(strict, token=guest) == 401
    assert status_of(strict, cookie=guest) == 401
    identity = strict.authenticate(token=token(rooms=["tea"]))
    assert identity.user == ("42", "Ada") and identity.rooms == frozenset(["tea"]) and identity.session == ""


@pytest.mark.parametrize(
    "bad",
    [
        {"exp": time.time() - 10},
        {"exp": None},
        {"sub": None},
        {"sub": "x" * 200},
        {"name": "a\x00b"},
        {"rooms": "tea"},
        {"rooms": [1]},
        {"nbf": time.time() + 86_400},  # the time is that of the collection, long before the test
    ],
)
def test_a_jwt_whose_claims_will_not_do_is_refused(bad: dict[str, Any]) -> None:
    assert status_of(make(jwt_key=JWT_KEY), token=token(**bad)) == 401


def test_a_jwt_with_another_key_algorithm_or_none_is_refused() -> None:
    authenticator = make(jwt_key=JWT_KEY)
    assert status_of(authenticator, token=token(key="x" * 32)) == 401
    assert status_of(authenticator, token=token(algorithm="HS384", key=JWT_KEY * 2)) == 401
    assert status_of(authenticator, token=jwt.encode({"sub": "1", "exp": 9e9}, "", algorithm="none")) == 401


def test_the_audience_is_checked_where_it_is_asked_for() -> None:
    authenticator = make(jwt_key=JWT_KEY, jwt_audience="chat")
    assert authenticator.authenticate(token=token(aud="chat")).user.id == "42"
    assert status_of(authenticator, token=token(aud="other")) == 401
    assert status_of(authenticator, token=token()) == 401


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize("kind", ["RS256", "EdDSA"])
def test_public_keys_come_from_a_pem_file(kind: str, tmp_path: Path) -> None:
    key: Any = (
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        if kind == "RS256"
        else ed25519.Ed25519PrivateKey.generate()
    )
    path = tmp_path / "key.pem"
    path.write_bytes(pem(key))
    authenticator = make(jwt_key_file=str(path))
    assert authenticator.authenticate(token=token(key, kind)).user.id == "42"
    # The public key must not pass for an HMAC secret.
    forged = token("x" * 32, "HS256")
    assert status_of(authenticator, token=forged) == 401


def test_a_jwks_file_has_a_key_for_each_kid(tmp_path: Path) -> None:
    keys = {kid: rsa.generate_private_key(public_exponent=65537, key_size=2048) for kid in ("a", "b")}
    document = {
        "keys": [
            {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": kid, "alg": "RS256"}
            for kid, key in keys.items()
        ]
    }
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(document))
    authenticator = make(jwt_key_file=str(path))
    for kid, key in keys.items():
        assert authenticator.authenticate(token=token(key, "RS256", {"kid": kid})).user.id == "42"
    assert status_of(authenticator, token=token(keys["a"], "RS256", {"kid": "b"})) == 401
    assert status_of(authenticator, token=token(keys["a"], "RS256", {"kid": "c"})) == 401


@pytest.mark.parametrize("content", [b"", b"rubbish", b"{}", b'{"keys":[]}', b'{"keys":[{"kty":"oct","k":"eA"}'])
def test_a_key_file_that_is_none_stops_the_start(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(StartError, match="jwt-key-file"):
        make(jwt_key_file=str(path))


def test_a_short_secret_stops_the_start() -> None:
    with pytest.raises(StartError, match="32 bytes"):
        make(jwt_key="short")


def test_tokens_are_taken_out_of_what_is_logged() -> None:
    assert redacted("/ws?token=abc.def&room=x") == "/ws?token=...&room=x"
    assert redacted("/ws?room=x&TOKEN=abc") == "/ws?room=x&TOKEN=..."
