"""Commands and events: the samples, the limits, and whatever else may come."""

from __future__ import annotations

import itertools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornadochat import protocol
from tornadochat._fastframe import plain_message, plain_send
from tornadochat.errors import ProtocolError
from tornadochat.protocol import (
    Join,
    Leave,
    Limits,
    Ping,
    Send,
    Typing,
    User,
    Who,
    message_body,
    parse_command,
    parse_json,
)
from tornadochat.settings import Settings
from tornadochat.text_rules import check_text, normalise_name, normalise_room

SAMPLES = Path(__file__).parent / "samples"
LIMITS = Limits.of(Settings())
SCHEMA = json.loads(files("tornadochat").joinpath("schema.json").read_text())
ID = "q7Hn2kLw9ZxT4vBc8YpR"
ADA = User("u_8f3a5d1c2b4e6f70", "Ada")


def samples(name: str) -> list[Any]:
    return json.loads((SAMPLES / f"{name}.json").read_text())


def valid(message: Any, kind: str) -> bool:
    schema = {**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{kind}"}]}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(message))


def refused(payload: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as found:
        parse_command(payload, LIMITS)
    return found.value


@pytest.mark.parametrize("sample", samples("commands"), ids=lambda sample: sample["name"])
def test_sample_commands_are_valid_and_understood(sample: dict[str, Any]) -> None:
    assert valid(sample["message"], "command")
    command = parse_command(json.dumps(sample["message"]).encode(), LIMITS)
    assert type(command).__name__.lower() == sample["message"]["type"]


@pytest.mark.parametrize("sample", samples("bad_commands"), ids=lambda sample: sample["name"])
def test_bad_sample_commands_are_refused_with_their_code(sample: dict[str, Any]) -> None:
    assert not valid(sample["message"], "command")
    assert refused(json.dumps(sample["message"]).encode()).code == sample["error"]


@pytest.mark.parametrize("sample", samples("events"), ids=lambda sample: sample["name"])
def test_sample_events_are_valid(sample: dict[str, Any]) -> None:
    assert valid(sample["message"], "event")


def test_every_event_that_is_built_is_valid_and_every_kind_has_a_sample() -> None:
    body = protocol.message_body("lobby", ID, ADA, "hello", 1790000000123)
    problem = ProtocolError("rate_limited", "Wait.", message_id=ID, room="lobby", retry_after_ms=800)
    built = [
        protocol.welcome(ADA, "token", LIMITS),
        protocol.joined("lobby", "k3f9a1z8", 57, False, 16, 12),
        protocol.left("lobby", "removed"),
        b'{"seq":58,' + body[1:],
        protocol.ack("lobby", ID, "k3f9a1z8", 58),
        protocol.reset("lobby", "k3f9a1z8", 12, True),
        protocol.gap("lobby", "k3f9a1z8", 90),
        protocol.presence("lobby", [ADA], [], 13),
        protocol.typing("lobby", [ADA]),
        protocol.who("lobby", [ADA], 1, 0),
        protocol.status("down"),
        protocol.error(problem),
        protocol.pong(),
        protocol.bye("drain", 2350),
    ]
    kinds = set()
    for event in built:
        message = json.loads(event)
        assert valid(message, "event"), message
        kinds.add(message["type"])
    assert kinds == {sample["message"]["type"] for sample in samples("events")}


def test_the_error_codes_of_the_schema_are_those_of_the_code() -> None:
    assert SCHEMA["$defs"]["error"]["properties"]["code"]["enum"] == list(protocol.ERROR_CODES)


def test_commands_are_read_as_what_they_say() -> None:
    assert parse_command(b'{"type":"join","room":" tea "}', LIMITS) == Join("tea", None, 50)
    assert parse_command(
        b'{"type":"join","room":"tea","after":{"epoch":"k3f9a1z8","seq":4},"history":5000}', LIMITS
    ) == Join("tea", ("k3f9a1z8", 4), 1000)
    assert parse_command(b'{"type":"leave","room":"tea"}', LIMITS) == Leave("tea")
    assert parse_command(b'{"type":"typing","room":"tea"}', LIMITS) == Typing("tea")
    assert parse_command(b'{"type":"who","room":"tea","offset":3}', LIMITS) == Who("tea", 3, 200)
    assert parse_command(b'{"type":"ping"}', LIMITS) == Ping()
    sent = json.dumps({"type": "send", "room": "tea", "id": ID, "text": "a\n\tb"}).encode()
    assert parse_command(sent, LIMITS) == Send("tea", ID, "a\n\tb")


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"null", b'"join"', b"1e400", b"NaN", b"[" * 100_000, b'{"type":"ping"} x', b"\x00"],
)
def test_what_is_no_object_is_bad_json(payload: bytes) -> None:
    assert refused(payload).code == "bad_json"


@pytest.mark.parametrize("kind", ["1", "null", "[]", "{}", '"Join"', '"join "', "NaN"])
def test_an_unknown_type_names_those_that_there_are(kind: str) -> None:
    error = refused(b'{"type":%s,"room":"tea"}' % kind.encode())
    assert error.code == "unknown_type" and "join, leave, send" in error.message


@pytest.mark.parametrize(
    "seq", ["1.0", "1e3", "NaN", "Infinity", "1e400", "true", '"1"', "-1", "9007199254740993"]
)
def test_a_seq_is_a_whole_number_that_json_can_carry(seq: str) -> None:
    error = refused(b'{"type":"join","room":"tea","after":{"epoch":"k3f9a1z8","seq":%s}}' % seq.encode())
    assert error.code in ("bad_command", "bad_json")


def test_an_error_of_a_send_carries_its_id() -> None:
    error = refused(json.dumps({"type": "send", "room": "", "id": ID, "text": "x"}).encode())
    assert (error.code, error.message_id) == ("bad_room", ID)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_command_or_a_protocol_error(payload: bytes) -> None:
    try:
        parse_command(payload, LIMITS)
    except ProtocolError as error:
        assert error.code in protocol.ERROR_CODES and protocol.error(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.fixed_dictionaries(
    {"type": st.sampled_from(["join", "leave", "send", "typing", "who", "ping"])},
    optional=dict.fromkeys(("room", "id", "text", "after", "history", "offset", "limit"), json_values),
)


@settings(max_examples=300)
@given(fields)
def test_any_fields_give_a_command_or_a_protocol_error(command: dict[str, Any]) -> None:
    try:
        parse_command(json.dumps(command).encode(), LIMITS)
    except ProtocolError as error:
        assert error.code in protocol.ERROR_CODES


@given(st.text(min_size=1, max_size=100))
def test_whatever_text_is_taken_comes_out_as_valid_json(text: str) -> None:
    try:
        text = check_text(text, 4000, 16384)
    except ProtocolError:
        return
    body = protocol.message_body("tea", ID, ADA, text, 1)
    assert json.loads(body)["text"] == text


# Names, rooms and texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_name", "wanted"),
    [
        ("Ada", "Ada"),
        ("  Ada ", "Ada"),
        ("林さん", "林さん"),
        ("e\u0301", "é"),
        ("x" * 40, "x" * 40),
        ("👩‍🚀", "👩‍🚀"),
    ],
)
def test_names_are_normalised(given_name: str, wanted: str) -> None:
    assert normalise_name(given_name) == wanted


@pytest.mark.parametrize(
    "name", ["", "  ", "a\x00b", "a\nb", "\x7f", "x" * 41, "é" * 41, "\ud800", "a\u202eb", "a\u2028b", None, 5, []]
)
def test_names_that_cannot_be_shown_are_refused(name: Any) -> None:
    with pytest.raises(ProtocolError):
        normalise_name(name)


def test_a_room_has_64_characters_and_256_bytes() -> None:
    assert normalise_room("r" * 64) == "r" * 64
    assert normalise_room("😀" * 64) == "😀" * 64
    for room in ("r" * 65, "😀" * 65):
        with pytest.raises(ProtocolError):
            normalise_room(room)


def test_a_text_is_bounded_in_characters_and_in_bytes() -> None:
    assert check_text("x" * 10, 10, 100) == "x" * 10
    for text, chars, size in (("x" * 11, 10, 100), ("é" * 6, 10, 11), ("x" * 12, 100, 11)):
        with pytest.raises(ProtocolError):
            check_text(text, chars, size)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "a\x00", "a\x1b[0m", "\x85", "a\ud83d", None, 7, ["x"]])
def test_texts_that_are_blank_or_not_clean_are_refused(text: Any) -> None:
    with pytest.raises(ProtocolError) as found:
        check_text(text, 4000, 16384)
    assert found.value.code == "bad_text"


# The short way of a plain send ---------------------------------------------------------------------

NAMES = st.sampled_from(["type", "room", "id", "text", "extra"])
VALUES = st.one_of(
    st.sampled_from(["send", "join", "tea", " tea", "tea ", "x" * 65, "a" * 16, "a" * 65, "a b" * 9, "   ", ""]),
    st.text(st.characters(max_codepoint=0x17F), max_size=30),
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.sampled_from(["", " ", "\n\t"]), st.booleans())
def test_the_short_way_finds_what_the_general_parser_finds_or_nothing(
    members: list[tuple[str, str]], space: str, escaped: bool
) -> None:
    text = ("," + space).join(
        f"{json.dumps(name)}{space}:{space}{json.dumps(value, ensure_ascii=escaped)}" for name, value in members
    )
    payload = (space + "{" + space + text + space + "}" + space).encode()
    short = plain_send(payload, 100)
    if short is not None:
        assert len(members) == 4
        assert parse_json(payload, LIMITS) == Send(*short)


@pytest.mark.parametrize("order", list(itertools.permutations(("type", "room", "id", "text")))[::5])
def test_the_short_way_takes_a_plain_send_in_any_order(order: tuple[str, ...]) -> None:
    fields = {"type": "send", "room": "tea", "id": "Az09_-" * 4, "text": "hello, you"}
    payload = json.dumps({name: fields[name] for name in order}).encode()
    assert plain_send(payload, 100) == ("tea", "Az09_-" * 4, "hello, you")
    assert parse_command(payload, LIMITS) == Send("tea", "Az09_-" * 4, "hello, you")


@pytest.mark.parametrize("cut", range(1, 78))
def test_the_short_way_reads_nothing_behind_the_payload(cut: int) -> None:
    payload = b'{"type":"send","room":"tea","id":"aaaaaaaaaaaaaaaa","text":"hello"}  \n'
    assert plain_send(payload, 100) is not None
    assert plain_send(payload[:cut], 100) is None or payload[cut:].strip() == b""


@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 2**53))
def test_a_body_is_the_same_either_way(name: str, text: str, ts: int) -> None:
    name, text = (value.encode("utf-8", "replace").decode() for value in (name, text))
    body = message_body("tea", "a" * 16, User("u_1", name), text, ts)
    assert json.loads(body) == {
        "type": "message",
        "room": "tea",
        "id": "a" * 16,
        "user": {"id": "u_1", "name": name},
        "text": text,
        "ts": ts,
    }
    short = plain_message("tea", "a" * 16, "u_1", name, text, ts)
    assert short is None or short == body
