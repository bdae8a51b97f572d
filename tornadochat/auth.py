"""Who somebody is: guest sessions in signed tokens, and JWTs of sites with users of their own.

``gateway`` asks for every handshake and API call. Signatures are Tornado's signed values and PyJWT;
what is made here is what they carry, how long it holds, and how it is ended. Tokens never reach a log:
use ``redacted`` for anything that may hold one.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jwt
import redis
import ujson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from tornado.web import create_signed_value, decode_signed_value

from tornadochat.errors import HandshakeError, ProtocolError, StartError, Unavailable
from tornadochat.protocol import User
from tornadochat.text_rules import normalise_name

if TYPE_CHECKING:
    import redis.asyncio

    from tornadochat.settings import Settings

log = logging.getLogger("tornadochat")

COOKIE = "tornadochat_session"
VALUE_NAME = "session"  # part of what is signed, so that no other signed value passes for a session
SECRET_BYTES = 32
# A new one comes only when a store lost the old one; each costs a signature for a token that is not valid.
MAX_SECRETS = 8
MIN_HS256_BYTES = 32  # RFC 7518 section 3.2
MAX_TOKEN_CHARS = 8192
MAX_SUB_CHARS = 128
# Ended sessions remembered; the oldest go first. Each is one user whom somebody ended by hand.
MAX_ENDED = 100_000
JWT_SHAPE = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*")
IN_URL = re.compile(r"(?i)\b(token|key|api_key|access_token)=[^&\s]*")


class Identity(NamedTuple):
    """Somebody who may come in.

    Attributes:
        user: Who it is.
        session: Token that brings the same guest back; empty for users of JWTs.
        rooms: Rooms it may join; None for all.
        expires: Unix time at which the right to be here ends.
    """

    user: User
    session: str
    rooms: frozenset[str] | None
    expires: float


def redacted(text: str) -> str:
    """A URL or log line with the tokens in it taken out."""
    return IN_URL.sub(r"\1=...", text)


async def load_secrets(
    store: redis.asyncio.Redis, settings: Settings, known: Sequence[str] = ()
) -> tuple[list[str], bool]:
    """The secrets that sign sessions: the option's, or those that all machines find in the store.

    There is more than one only after the store lost its data while somebody made a new one: what the
    workers still know is put back, so that nobody has to sign in again.

    Args:
        store: Where they are kept.
        settings: The option and the namespace.
        known: What this worker has used so far.

    Returns:
        The one to sign with and then the others that are good; and whether the store lacked some of ``known``.

    Raises:
        Unavailable: The store cannot be reached.
    """
    if settings.session_secret:
        return [settings.session_secret], False
    key = f"{settings.redis_prefix}:secret"
    fresh = known[0] if known else secrets.token_hex(SECRET_BYTES)
    try:
        await store.set(key, fresh, nx=True)
        found: Any = await store.get(key)
        added: Any = await store.sadd(f"{key}s", *known) if known else 0
        others: Any = await store.smembers(f"{key}s") if found else ()
        if found and found not in others:
            await store.sadd(f"{key}s", found)
    except redis.RedisError as error:
        raise Unavailable(str(error)) from None
    if not found:
        raise Unavailable("the session secret is not in the store")
    ordered = [found, *sorted(set(others) - {found})][:MAX_SECRETS]
    return [bytes(each).decode("ascii") for each in ordered], added > 0


class Authenticator:
    """Gives out and reads what proves who somebody is.

    Args:
        settings: The identity options.
        secrets: The first signs the sessions of guests, all of them are good; see ``load_secrets``.

    Raises:
        StartError: The JWT key cannot be used.
    """

    def __init__(self, settings: Settings, secrets: Sequence[str]) -> None:
        self._settings = settings
        self.secrets = secrets
        self._keys = JwtKeys(settings)
        self._ended: dict[str, float] = {}

    # Sessions of guests ----------------------------------------------------------------------------

    def new_guest(self, name: Any) -> Identity:
        """A guest who was never here.

        Raises:
            HandshakeError: 401 where guests are not let in, 400 where the name will not do.
        """
        if self._settings.auth != "guest":
            raise HandshakeError(401, "Sign in: this chat takes no guests.", CHALLENGE)
        try:
            user = User(f"u_{secrets.token_hex(8)}", normalise_name(name))
        except ProtocolError as error:
            raise HandshakeError(400, error.message) from None
        return self._issue(user)

    def _issue(self, user: User) -> Identity:
        now = time.time()
        value = ujson.dumps([user.id, user.name, round(now, 3)])
        token = create_signed_value(self.secrets[0], VALUE_NAME, value).decode("ascii")
        return Identity(user, token, None, now + self._settings.session_seconds)

    def read_session(self, token: str) -> Identity | None:
        """The guest of a session token, with a fresh token when half of its life is over; None where
        it is not valid (any more)."""
        seconds = self._settings.session_seconds
        try:
            value = self._read_signed(token, seconds / 86400)
            user_id, name, issued = ujson.loads(value) if value else (None, None, 0)
        except (ValueError, TypeError):
            return None
        if type(user_id) is not str or type(name) is not str or self._is_ended(user_id, issued):
            return None
        user = User(user_id, name)
        if time.time() - issued > seconds / 2:
            return self._issue(user)
        return Identity(user, token, None, issued + seconds)

    def _read_signed(self, token: str, days: float) -> bytes | None:
        for secret in self.secrets:
            value = decode_signed_value(secret, VALUE_NAME, token, max_age_days=days)
            if value:
                return value
        return None

    def rename(self, identity: Identity, name: Any) -> Identity:
        """The same guest under another name.

        Raises:
            HandshakeError: 400 where the name will not do.
        """
        try:
            return self._issue(User(identity.user.id, normalise_name(name)))
        except ProtocolError as error:
            raise HandshakeError(400, error.message) from None

    # Everybody -------------------------------------------------------------------------------------

    def authenticate(
        self,
        *,
        cookie: str | None = None,
        token: str | None = None,
        authorization: str | None = None,
        name: str | None = None,
    ) -> Identity:
        """Who a request comes from: a token first, then the cookie, then the name of a new guest.

        Raises:
            HandshakeError: 401 (or 400 for a bad name); it says what to do.
        """
        if authorization:
            scheme, _, given = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise HandshakeError(401, "Send Authorization: Bearer and a token.", CHALLENGE)
            token = given.strip()
        if token:
            return self._by_token(token)
        if self._settings.auth == "guest":
            identity = self.read_session(cookie) if cookie else None
            if identity is not None:
                return identity
            if name is not None:
                return self.new_guest(name)
        raise HandshakeError(401, "Sign in first: POST /api/session, or give a token.", CHALLENGE)

    def _by_token(self, token: str) -> Identity:
        if len(token) > MAX_TOKEN_CHARS:
            raise HandshakeError(401, f"A token has at most {MAX_TOKEN_CHARS} characters.", CHALLENGE)
        if self._keys and JWT_SHAPE.fullmatch(token):
            return self._by_jwt(token)
        identity = self.read_session(token) if self._settings.auth == "guest" else None
        if identity is None:
            raise HandshakeError(401, "The token is not valid or has expired; sign in again.", CHALLENGE)
        return identity

    def _by_jwt(self, token: str) -> Identity:
        try:
            claims = self._keys.decode(token)
            subject = claims["sub"]
            if type(subject) is not str or not 0 < len(subject) <= MAX_SUB_CHARS or not subject.isprintable():
                raise HandshakeError(401, f"`sub` must be 1 to {MAX_SUB_CHARS} printable characters.", CHALLENGE)
            user = User(subject, normalise_name(claims.get("name", subject)))
        except jwt.PyJWTError as error:
            raise HandshakeError(401, f"The token was refused: {error}.", CHALLENGE) from None
        except ProtocolError as error:
            raise HandshakeError(401, f"The token's name was refused: {error.message}", CHALLENGE) from None
        rooms = claims.get("rooms")
        if rooms is not None and not (type(rooms) is list and all(type(room) is str for room in rooms)):
            raise HandshakeError(401, "`rooms` must be a list of room names.", CHALLENGE)
        issued = claims.get("iat", 0)
        if self._is_ended(subject, issued if isinstance(issued, (int, float)) else 0):
            raise HandshakeError(401, "This session was ended; sign in again.", CHALLENGE)
        allowed = None if rooms is None else frozenset(rooms)
        return Identity(user, "", allowed, float(claims["exp"]))

    # Sessions that were ended ----------------------------------------------------------------------

    def _is_ended(self, user_id: str, issued: float) -> bool:
        return issued <= self.ended_at(user_id)

    def ended_at(self, user_id: str) -> float:
        """Unix time up to which no session of this user is taken; -1 for any."""
        return self._ended.get(user_id, -1.0)

    def end(self, user_id: str, at: float) -> None:
        """Take no session of this user that was given out up to this Unix time."""
        self._ended.pop(user_id, None)
        self._ended[user_id] = at
        while len(self._ended) > MAX_ENDED:
            self._ended.pop(next(iter(self._ended)))

    async def load_ended(self, store: redis.asyncio.Redis) -> None:
        """Learn which sessions were ended while this worker did not listen.

        Raises:
            Unavailable: The store cannot be reached.
        """
        try:
            found: Any = await store.zrange(ended_key(self._settings), -MAX_ENDED, -1, withscores=True)
        except redis.RedisError as error:
            raise Unavailable(str(error)) from None
        for user_id, at in found:
            self.end(user_id.decode("utf-8"), at)


async def store_ended(store: redis.asyncio.Redis, settings: Settings, user_id: str, at: float) -> None:
    """Write down that a user's sessions up to this Unix time are ended, for workers to come.

    Raises:
        Unavailable: The store cannot be reached.
    """
    key = ended_key(settings)
    try:
        async with store.pipeline(transaction=True) as pipe:
            pipe.zadd(key, {user_id: at})
            pipe.zremrangebyscore(key, "-inf", at - settings.session_seconds)
            pipe.zremrangebyrank(key, 0, -MAX_ENDED - 1)
            pipe.expire(key, settings.session_seconds)
            await pipe.execute()
    except redis.RedisError as error:
        raise Unavailable(str(error)) from None


def ended_key(settings: Settings) -> str:
    """Key of the sorted set of users whose sessions were ended, scored by Unix time."""
    return f"{settings.redis_prefix}:ended"


CHALLENGE = {"WWW-Authenticate": 'Bearer realm="tornadochat"'}


class JwtKeys:
    """The keys that JWTs are checked with, each for the one algorithm that fits its kind.

    Raises:
        StartError: A key is missing, too short, or of a kind that is not supported.
    """

    def __init__(self, settings: Settings) -> None:
        self._audience = settings.jwt_audience or None
        self._single: tuple[Any, str] | None = None
        self._by_kid: dict[str, tuple[Any, str]] = {}
        if settings.jwt_key:
            if len(settings.jwt_key.encode("utf-8")) < MIN_HS256_BYTES:
                raise StartError(f"--jwt-key must have at least {MIN_HS256_BYTES} bytes (RFC 7518 section 3.2)")
            self._single = (settings.jwt_key, "HS256")
        elif settings.jwt_key_file:
            self._read_file(Path(settings.jwt_key_file))

    def __bool__(self) -> bool:
        return self._single is not None or bool(self._by_kid)

    def _read_file(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StartError(f"--jwt-key-file cannot be read: {error}") from None
        try:
            if data.lstrip().startswith(b"{"):
                self._read_jwks(json.loads(data))
            else:
                key = load_pem_public_key(data)
                self._single = (key, _algorithm_of(key))
        except (ValueError, KeyError, jwt.PyJWTError) as error:
            raise StartError(f"--jwt-key-file {path} is no PEM public key and no JWKS: {error}") from None

    def _read_jwks(self, document: Any) -> None:
        for entry in jwt.PyJWKSet.from_dict(document).keys:
            found = (entry.key, entry.algorithm_name)
            if entry.algorithm_name not in ("HS256", "RS256", "EdDSA"):
                raise ValueError(f"algorithm {entry.algorithm_name} is not one of HS256, RS256, EdDSA")
            if entry.key_id:
                self._by_kid[entry.key_id] = found
            else:
                self._single = found
        if len(self._by_kid) == 1 and self._single is None:
            self._single = next(iter(self._by_kid.values()))

    def decode(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature, times and audience are right.

        Raises:
            jwt.PyJWTError: It is to be refused; the message says why.
        """
        kid = jwt.get_unverified_header(token).get("kid")
        found = self._by_kid.get(kid) if isinstance(kid, str) else None
        if found is None:
            found = self._single
        if found is None:
            raise jwt.InvalidKeyError("no key has the token's kid")
        key, algorithm = found
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._audience,
            options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
        )
        return claims


def _algorithm_of(key: Any) -> str:
    if isinstance(key, RSAPublicKey):
        return "RS256"
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    raise ValueError("the key is neither RSA nor Ed25519")
