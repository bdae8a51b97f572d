"""The checker of histories: it must find each kind of breach, and nothing where there is none."""

from __future__ import annotations

import copy

from tests.faults.checker import Member, Seen, Sent, Told, Verdict, check

A, B = "aaaaaaaa", "bbbbbbbb"


def history(members: int = 3, messages: int = 10) -> tuple[list[Sent], list[Member]]:
    """Everybody got everything, in order."""
    sent = [Sent(f"m{number}", "tea", (A, number)) for number in range(1, messages + 1)]
    saw = [Seen(A, number, f"m{number}") for number in range(1, messages + 1)]
    return sent, [Member(f"member {index}", "tea", (A, 0), list(saw)) for index in range(members)]


def judged(sent: list[Sent], members: list[Member]) -> tuple[int, int, int, int]:
    verdict = check(sent, members)
    assert verdict.clean is not any((verdict.lost, verdict.doubled, verdict.disordered, verdict.half))
    return verdict.lost, verdict.doubled, verdict.disordered, verdict.half


def test_a_clean_history_is_clean() -> None:
    verdict = check(*history())
    assert verdict == Verdict(messages=10, acknowledged=10, deliveries=30)
    assert verdict.clean


def test_a_loss_is_found() -> None:
    sent, members = history()
    del members[1].saw[4]
    assert judged(sent, members) == (1, 0, 0, 0)
    assert "member 1 never got m5" in check(sent, members).details[0]


def test_the_loss_of_the_last_message_is_found() -> None:
    sent, members = history()
    members[2].saw.pop()
    assert judged(sent, members) == (1, 0, 0, 0)


def test_a_message_that_nobody_got_is_lost_for_each() -> None:
    sent, members = history()
    sent.append(Sent("m11", "tea", (A, 11)))
    assert judged(sent, members) == (3, 0, 0, 0)


def test_a_double_is_found() -> None:
    sent, members = history()
    members[0].saw.insert(5, members[0].saw[4])
    assert judged(sent, members) == (0, 1, 0, 0)


def test_a_message_stored_twice_is_found() -> None:
    sent, members = history()
    for member in members:
        member.saw.append(Seen(A, 11, "m3"))
    assert judged(sent, members) == (0, 3, 0, 0)


def test_a_swap_is_found() -> None:
    sent, members = history()
    saw = members[2].saw
    saw[3], saw[4] = saw[4], saw[3]
    assert judged(sent, members) == (0, 0, 1, 0)


def test_two_messages_at_one_place_are_found() -> None:
    sent, members = history()
    members[0].saw[4] = Seen(A, 5, "other")
    sent.append(Sent("other", "tea", (A, 5)))
    assert check(sent, members).disordered == 1


def test_a_number_that_is_given_again_in_the_next_epoch_is_found() -> None:
    sent, members = history(2, 5)
    sent.append(Sent("m6", "tea", (A, 6)))
    members[0].saw.append(Seen(A, 6, "m6"))
    sent.append(Sent("x6", "tea", (A, 6)))
    members[1].saw.append(Seen(A, 6, "x6"))
    assert check(sent, members).disordered == 1


def test_epochs_in_two_orders_are_found() -> None:
    sent, members = history(2, 2)
    members[0].saw += [Seen(B, 3, "m3")]
    members[1].start = (B, 0)
    assert check(sent, members).disordered >= 1


def test_a_half_delivered_message_is_found() -> None:
    sent, members = history()
    sent.append(Sent("m11", "tea", None))
    assert judged(sent, members) == (0, 0, 0, 0)
    for member in members[:2]:
        member.saw.append(Seen(A, 11, "m11"))
    assert judged(sent, members) == (0, 0, 0, 1)
    members[2].saw.append(Seen(A, 11, "m11"))
    assert judged(sent, members) == (0, 0, 0, 0)


def test_a_hole_that_was_told_is_no_loss_but_only_there() -> None:
    sent, members = history()
    members[1].saw[4:7] = [Told(A, 7)]
    assert judged(sent, members) == (0, 0, 0, 0)
    del members[1].saw[1]
    assert judged(sent, members) == (1, 0, 0, 0)


def test_a_hole_at_the_end_excuses_what_follows() -> None:
    sent, members = history()
    members[1].saw[8:] = [Told(A, 10)]
    assert judged(sent, members) == (0, 0, 0, 0)


def test_a_member_that_came_later_does_not_miss_what_was_before() -> None:
    sent, members = history()
    members[1].start = (A, 6)
    del members[1].saw[:6]
    assert judged(sent, members) == (0, 0, 0, 0)


def test_a_message_replayed_in_a_later_epoch_keeps_its_place() -> None:
    sent, members = history(2, 5)
    members[1].saw[3:] = [Seen(B, 4, "m4"), Seen(B, 5, "m5")]
    for member in members:
        member.saw.append(Seen(B, 6, "m6"))
    sent.append(Sent("m6", "tea", (B, 6)))
    assert judged(sent, members) == (0, 0, 0, 0)


def test_what_the_store_lost_may_come_again_where_that_was_told() -> None:
    sent, members = history(2, 5)
    sent[4].place = (B, 1)
    members[0].saw += [Told(B, 0), Seen(B, 1, "m5")]
    members[1].saw[4:] = [Told(B, 0), Seen(B, 1, "m5")]
    verdict = check(sent, members)
    assert verdict.clean and verdict.again == 1
    untold = copy.deepcopy(members)
    del untold[0].saw[5]
    assert check(sent, untold).doubled == 1


def test_rooms_are_judged_apart() -> None:
    sent, members = history(2, 3)
    other_sent, other_members = history(2, 3)
    for each in (*other_sent, *other_members):
        each.room = "coffee"
    del other_members[0].saw[1]
    assert judged(sent + other_sent, members + other_members) == (1, 0, 0, 0)
