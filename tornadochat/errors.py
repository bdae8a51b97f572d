"""Every error of the server and of the Python client, as one tree split by whose fault it is.

    ChatError
    |-- PeerError            the other side's fault; told to it, never logged above debug
    |   |-- ProtocolError    a bad command: answered with an ``error`` event, the connection stays
    |   |-- FrameError       a breach of RFC 6455: the connection closes with ``code``
    |   `-- HandshakeError   no WebSocket or API access: answered with an HTTP ``status``
    |-- StoreError           Redis' fault: the client may try again with the same id
    |   |-- Unavailable      no answer in time, or no room in the queue; the outcome is unknown
    |   `-- StoreRefused     the store answers but cannot be used (too old, evicting policy)
    |-- StartError           the operator's fault: printed without a traceback, exit status 1
    `-- ClientError          what a program that uses ``client`` has to deal with
        |-- ConnectRefused   the server does not let it in, or has sent it away for good
        |-- CommandRefused   the server did not do what was asked; ``code`` is one of the protocol
        |-- Unconfirmed      nobody can tell any more whether a message was stored
        `-- ClientClosed     the client was closed, or there is no connection for a question

Pure: imports nothing of the project.
"""

from __future__ import annotations


class ChatError(Exception):
    """Root of the tree."""


class PeerError(ChatError):
    """The other side did something wrong."""


class ProtocolError(PeerError):
    """A command that cannot be carried out.

    Args:
        code: One of ``protocol.ERROR_CODES``.
        message: English sentence that says what to do about it.
        message_id: ``id`` of the command, where it had one.
        room: Room that the command named, where it named a valid one.
        retry_after_ms: When to try again, in milliseconds, where trying again makes sense.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        message_id: str | None = None,
        room: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.message_id = message_id
        self.room = room
        self.retry_after_ms = retry_after_ms


class FrameError(PeerError):
    """A breach of RFC 6455 by the bytes of a peer.

    Args:
        code: Close code of RFC 6455 section 7.4.1 to answer with.
        reason: Close reason, at most 123 bytes of UTF-8.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class HandshakeError(PeerError):
    """A request that does not become a WebSocket, or an API call that is refused.

    Args:
        status: HTTP status code of the answer.
        message: English sentence for the answer's body; says what to do.
        headers: Further headers of the answer, such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


class StoreError(ChatError):
    """The store's fault."""


class Unavailable(StoreError):
    """The store did not answer in time. What was asked may or may not have happened."""


class StoreRefused(StoreError):
    """The store answers but must not be used; the message says why and what to change."""


class StartError(ChatError):
    """The server cannot start; the message says what to change."""


class ClientError(ChatError):
    """Something that a program which uses the client has to deal with."""


class ConnectRefused(ClientError):
    """Coming back is of no use before something is mended.

    Args:
        status: HTTP status of the handshake's answer, or the close code; 0 where TLS failed.
        message: What the server said.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class CommandRefused(ClientError):
    """The server did not carry out a command.

    Args:
        code: One of ``protocol.ERROR_CODES``.
        message: What the server said about it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Unconfirmed(ClientError):
    """Whether a message was stored cannot be told any more; a person has to look."""


class ClientClosed(ClientError):
    """The client was closed meanwhile, or has no connection just now."""
