"""What the fuzzer kept, once more: every input reaches a place of the codec that no other one reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, check_decoder
from tornadochat._fastframe import FrameDecoder

CORPUS = Path(__file__).resolve().parent / "fuzz" / "corpus"


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_codec_and_judge_agree_on_every_input_that_was_kept(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            error.add_note(f"input: {path}")
            raise


def test_a_corpus_is_there_for_every_target_and_no_other() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_the_judge_tells_a_difference() -> None:
    unmasked = b"\x81\x05Hello"
    with pytest.raises(AssertionError, match="8105"):
        check_decoder(lambda: FrameDecoder(10), unmasked, [], ([(1, b"Hello")], 0))
