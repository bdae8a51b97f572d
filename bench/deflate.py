"""``python -m bench.deflate``: what permessage-deflate costs a worker, and what it saves on the wire.

An event is compressed once for everybody in its room; a message that comes compressed is inflated once.
Texts are English words, since random bytes or one letter would tell nothing.
"""

from __future__ import annotations

import argparse
import random
import time
import zlib
from collections.abc import Callable

from tornadochat import protocol
from tornadochat._fastframe import OP_TEXT, Deflater, FrameDecoder, encode_events, encode_frame
from tornadochat.protocol import User

# Mean length and variety as in talk; the choice of the next one is fixed by the size.
WORDS = [
    word
    for line in (
        "the quick brown fox jumps over a lazy dog while we talk about lunch and the weather in town today",
        "maybe tomorrow will be better than this week was for all of us here",
    )
    for word in line.split()
]
REPEATS = 2000


def text_of(size: int) -> str:
    """So many characters of words."""
    chosen = random.Random(size)
    return " ".join(chosen.choice(WORDS) for _ in range(size))[:size]


def microseconds(work: Callable[[], object]) -> float:
    """CPU of one call, the mean of many."""
    begin = time.process_time()
    for _ in range(REPEATS):
        work()
    return (time.process_time() - begin) * 1e6 / REPEATS


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each size of text and each level."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--levels", type=int, nargs="*", default=[1, 6])
    parser.add_argument("--sizes", type=int, nargs="*", default=[30, 96, 300, 1000, 4000], help="of the text")
    options = parser.parse_args(arguments)
    for size in options.sizes:
        text = text_of(size)
        body = protocol.message_body("lobby", "q" * 24, User("u_8f3a5d1c2b4e6f70", "Ada"), text, 1790000000123)
        plain = microseconds(lambda body=body: encode_events(1, [body]))
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(
            b'{"type":"send","room":"lobby","id":"%s","text":"%s"}' % (b"q" * 24, text.encode())
        )
        frame = bytearray(encode_frame(OP_TEXT, (packed + packer.flush(zlib.Z_SYNC_FLUSH))[:-4], b"abcd"))
        frame[0] |= 0x40
        decoder, data = FrameDecoder(1 << 17, deflates=True), bytes(frame)
        inflating = microseconds(lambda decoder=decoder, data=data: decoder.feed(data))
        for level in options.levels:
            deflater, batch = Deflater(level, 0), encode_events(1, [body])

            def compress(deflater: Deflater = deflater, body: bytes = body) -> None:
                deflater.deflate(encode_events(1, [body]))

            print(
                f"text of {size} characters, level {level}: frame of {batch.size} bytes becomes "
                f"{deflater.deflate(batch).size}, {microseconds(compress) - plain:.1f} us to compress; "
                f"{inflating:.1f} us to inflate a send"
            )


if __name__ == "__main__":
    main()
