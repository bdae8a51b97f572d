"""Our codec against those of ``websockets`` and ``wsproto``, on the same bytes, cut anywhere."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER
from websockets.protocol import Protocol as PeerProtocol
from wsproto import ConnectionType
from wsproto.connection import Connection as WsprotoConnection
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import RemoteProtocolError

from tests.fuzz.targets import decode
from tornadochat._fastframe import OP_BINARY, OP_PING, OP_PONG, OP_TEXT, FrameDecoder, encode_frame
from tornadochat.errors import FrameError

LIMIT = 1 << 16
masks = st.binary(min_size=4, max_size=4)
texts = st.text(max_size=200).map(lambda text: text.encode("utf-8"))


@st.composite
def messages(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Messages and control frames that a client may send."""
    kinds = st.one_of(
        st.tuples(st.just(OP_TEXT), texts),
        st.tuples(st.just(OP_BINARY), st.binary(max_size=300)),
        st.tuples(st.just(OP_PING), st.binary(max_size=125)),
        st.tuples(st.just(OP_PONG), st.binary(max_size=125)),
    )
    return draw(st.lists(kinds, max_size=6))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in zip(at, at[1:], strict=False)]


@given(messages(), masks, st.lists(st.integers(0, 5000), max_size=8))
def test_what_the_websockets_package_sends_is_what_we_read(
    sent: list[tuple[int, bytes]], mask: bytes, places: list[int]
) -> None:
    data = b"".join(Frame(Opcode(opcode), payload).serialize(mask=True) for opcode, payload in sent)
    decoder, frames = FrameDecoder(LIMIT), []
    for piece in cut(data, places):
        frames += decoder.feed(piece)
    assert frames == sent


@given(messages(), st.lists(st.integers(0, 5000), max_size=8))
def test_what_we_send_is_what_the_websockets_package_reads(
    sent: list[tuple[int, bytes]], places: list[int]
) -> None:
    data = b"".join(encode_frame(opcode, payload, b"abcd") for opcode, payload in sent)
    peer = PeerProtocol(SERVER, max_size=LIMIT)
    for piece in cut(data, places):
        peer.receive_data(piece)
    received = [(int(frame.opcode), bytes(frame.data)) for frame in peer.events_received()]
    assert received == sent


def wsproto_reads(data: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    """Whole messages that wsproto finds, and whether it found no fault."""
    peer = WsprotoConnection(ConnectionType.SERVER)
    found: list[tuple[int, bytes]] = []
    buffers: dict[int, bytes] = {OP_TEXT: b"", OP_BINARY: b""}
    try:
        peer.receive_data(data)
        for event in peer.events():
            if isinstance(event, (TextMessage, BytesMessage)):
                kind = OP_TEXT if isinstance(event, TextMessage) else OP_BINARY
                buffers[kind] += event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                if event.message_finished:
                    found.append((kind, buffers[kind]))
                    buffers[kind] = b""
            elif isinstance(event, (Ping, Pong)):
                found.append((OP_PING if isinstance(event, Ping) else OP_PONG, bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                return found, False  # none was sent: it stands for a fault
    except RemoteProtocolError:
        return found, False
    return found, True


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_give_frames_or_a_frame_error_and_cutting_changes_nothing(data: bytes) -> None:
    whole = decode(FrameDecoder(LIMIT), [data])
    assert decode(FrameDecoder(LIMIT), [data[i : i + 1] for i in range(len(data))]) == whole


@given(st.binary(max_size=120), st.integers(0, 120))
def test_a_text_is_refused_exactly_when_wsproto_refuses_it(payload: bytes, place: int) -> None:
    place = min(place, len(payload))
    data = encode_frame(OP_TEXT, payload[:place], b"abcd", fin=False) + encode_frame(0, payload[place:], b"wxyz")
    frames, fault = [], False
    decoder = FrameDecoder(LIMIT)
    try:
        frames = decoder.feed(data)
        decoder.feed(b"")
    except FrameError as error:
        fault = True
        assert error.code == 1007
    expected, fine = wsproto_reads(data)
    assert fault is not fine
    if fine:
        assert frames == expected
