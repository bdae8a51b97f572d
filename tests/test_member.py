"""Confirmation of what a member sends, when its copy may not come."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tornadochat.limits import TokenBucket
from tornadochat.member import UNLIMITED, Member, Rates
from tornadochat.protocol import Limits, User
from tornadochat.publisher import Outcome

OLD, NEW = "aaaaaaaa", "bbbbbbbb"
MESSAGE_ID = "an-id-of-some-length"


class Tea:
    """A room in which one member has got everything below ``next_seq`` of ``epoch``."""

    name, epoch, next_seq, inside = "tea", OLD, 1, True

    def has(self, member: Member) -> bool:
        return self.inside

    def delivered(self, member: Member, epoch: str, seq: int) -> bool:
        return epoch == self.epoch and seq < self.next_seq

    def leave(self, member: Member) -> None:
        self.inside = False


class Story:
    """A member in the room, and every event that it was sent."""

    def __init__(self) -> None:
        self.room = Tea()
        self.events: list[dict[str, Any]] = []
        self.replies: list[Any] = []
        self.holds: list[float] = []
        rules = SimpleNamespace(
            find_room=lambda name: self.room,
            publish=lambda *args: self.replies.append(args[-1]),
            spoke=lambda room, user: None,
            leave=lambda room, user, by_hand: None,
            clock=lambda: 1.0,
            now=lambda: 1.0,
            limits=Limits(100, 100, 1000, 0, 100, 100),
            hold=lambda member, seconds: self.holds.append(seconds),
            find_repeat=lambda room, user, message_id, text, reply: reply(Outcome("unknown", "", 0)),
            stored=0,
        )
        self.member = Member(
            rules,  # type: ignore[arg-type]
            User("u_ada", "Ada"),
            transport_index=0,
            allowed=None,
            expires=0,
            address="",
            rates=UNLIMITED,
        )
        self.member.connection = self  # type: ignore[assignment]
        self.member.rooms = (self.room,)  # type: ignore[assignment]
        self.closed = False

    def send_text(self, payload: bytes) -> None:
        self.events.append(json.loads(payload))

    def send(self, epoch: str, seq: int) -> None:
        self.member.handle(json.dumps({"type": "send", "room": "tea", "id": MESSAGE_ID, "text": "x"}).encode())
        self.replies.pop()(Outcome("stored", epoch, seq))

    def kinds(self) -> list[str]:
        return [event.get("code", event["type"]) for event in self.events]


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_copy_that_came_is_all_the_confirmation_there_is(story: Story) -> None:
    story.room.next_seq = 2
    story.send(OLD, 1)
    story.member.passed_over(story.room, NEW, 5)  # type: ignore[arg-type]
    assert story.kinds() == []


def test_a_small_number_of_a_new_epoch_is_not_taken_for_an_old_one(story: Story) -> None:
    story.room.next_seq = 50
    story.send(NEW, 1)
    story.member.passed_over(story.room, NEW, 0)  # type: ignore[arg-type]
    assert story.kinds() == []  # its copy is still to come
    story.room.epoch, story.room.next_seq = NEW, 1
    story.member.passed_over(story.room, NEW, 1)  # type: ignore[arg-type]
    assert story.kinds() == ["ack"]


def test_what_the_log_has_dropped_meanwhile_is_confirmed(story: Story) -> None:
    story.send(OLD, 1)
    story.member.passed_over(story.room, OLD, 7)  # type: ignore[arg-type]
    assert story.events == [{"type": "ack", "room": "tea", "id": MESSAGE_ID, "epoch": OLD, "seq": 1}]


def test_what_may_be_lost_with_its_epoch_is_to_be_sent_again(story: Story) -> None:
    story.send(OLD, 1)
    story.member.passed_over(story.room, NEW, 0)  # type: ignore[arg-type]
    assert story.kinds() == ["unavailable"] and story.events[0]["id"] == MESSAGE_ID
    assert story.events[0]["retry_after_ms"] > 0


def test_whoever_leaves_is_told_of_what_was_stored(story: Story) -> None:
    story.send(OLD, 1)
    story.member.handle(b'{"type":"leave","room":"tea"}')
    assert story.kinds() == ["ack", "left"]


def test_who_is_over_a_rate_is_not_read_for_as_long_as_it_should_have_waited(story: Story) -> None:
    story.member._rates = Rates(TokenBucket(2, 4), TokenBucket(1, 2), None, None)
    for _ in range(4):
        story.member.handle(json.dumps({"type": "send", "room": "tea", "id": MESSAGE_ID, "text": "x"}).encode())
    assert len(story.replies) == 2 and story.kinds() == ["rate_limited"] * 2
    assert story.events[0]["retry_after_ms"] == 1000 and story.holds == [1.0, 1.0]
    # Commands of any kind count, such as those that nothing else limits; they are answered all the same.
    story.member.handle(b'{"type":"ping"}')
    story.member.handle(b"nonsense")
    assert story.kinds()[2:] == ["pong", "bad_json"] and story.holds[2:] == [0.5, 0.5]
