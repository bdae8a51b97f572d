"""What names, room names and texts may be: Unicode, NFC, without control characters, bounded.

Used by ``protocol`` and ``auth`` on everything that a person typed. Pure. Normalisation is Unicode
Standard Annex 15, form C; categories are those of the Unicode Character Database.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from tornadochat.errors import ProtocolError

MAX_NAME_CHARS, MAX_NAME_BYTES = 40, 160
MAX_ROOM_CHARS, MAX_ROOM_BYTES = 64, 256
# Cc: control, Cs: surrogates (no UTF-8 form), Co: private use stays allowed, Cn: unassigned stays too.
FORBIDDEN = frozenset(("Cc", "Cs"))
# Line and paragraph separators and the bidirectional controls can disguise a name.
DISGUISING = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\ufeff")


def normalise_name(name: Any) -> str:
    """A display name in NFC, outer spaces removed.

    Raises:
        ProtocolError: ``bad_command``; it is empty, too long, or has control characters.
    """
    return _label(name, "name", "bad_command", MAX_NAME_CHARS, MAX_NAME_BYTES)


def normalise_room(room: Any) -> str:
    """A room name in NFC, outer spaces removed.

    Raises:
        ProtocolError: ``bad_room``; it is empty, too long, or has control characters.
    """
    return _label(room, "room", "bad_room", MAX_ROOM_CHARS, MAX_ROOM_BYTES)


def check_text(text: Any, max_chars: int, max_bytes: int) -> str:
    """The text of a message in NFC; tabs and line ends are its only control characters.

    Args:
        text: As it came.
        max_chars: Limit in code points after normalisation.
        max_bytes: Limit in UTF-8 bytes after normalisation.

    Raises:
        ProtocolError: ``bad_text``; it is empty, too long, or has control characters.
    """
    if type(text) is not str or not text or text.isspace():
        raise ProtocolError("bad_text", "`text` must be a string that is not blank.")
    if not text.isascii():
        text = _normalised(text, "bad_text", "text")
    if not text.isprintable() and _forbidden(text, frozenset("\n\t")):
        raise ProtocolError("bad_text", "`text` must not have control characters but tabs and line ends.")
    if len(text) > max_chars or (not text.isascii() and len(text.encode("utf-8")) > max_bytes):
        raise ProtocolError(
            "bad_text", f"`text` must be at most {max_chars} characters and {max_bytes} bytes of UTF-8."
        )
    if len(text) > max_bytes:
        raise ProtocolError("bad_text", f"`text` must be at most {max_bytes} bytes of UTF-8.")
    return str(text)


def _label(value: Any, field: str, code: str, max_chars: int, max_bytes: int) -> str:
    if type(value) is not str:
        raise ProtocolError(code, f"`{field}` must be a string.")
    if value.isascii() and value.isprintable():
        label = value.strip()
    else:
        label = _normalised(value, code, field).strip()
        if _forbidden(label, frozenset()) or not DISGUISING.isdisjoint(label):
            raise ProtocolError(code, f"`{field}` must not have control characters.")
    if not label or len(label) > max_chars or len(label.encode("utf-8")) > max_bytes:
        raise ProtocolError(
            code, f"`{field}` must be 1 to {max_chars} characters and at most {max_bytes} bytes of UTF-8."
        )
    return label


def _normalised(value: str, code: str, field: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ProtocolError(code, f"`{field}` must not have lone surrogates.") from None
    return unicodedata.normalize("NFC", value)


def _forbidden(value: str, allowed: frozenset[str]) -> bool:
    return any(unicodedata.category(char) in FORBIDDEN and char not in allowed for char in value)
