import { describe, expect, it } from "vitest";
import type { MessageEvent_ } from "../src/protocol";
import { Room } from "../src/room";
import { ADA, BOB, pendingOf } from "./server";

const NOON = Date.UTC(2026, 5, 1, 12);

function message(seq: number, changed: Partial<MessageEvent_> = {}): MessageEvent_ {
  return {
    type: "message",
    seq,
    room: "tea",
    id: `id-${seq}`,
    user: BOB,
    text: `text ${seq}`,
    ts: NOON + seq,
    ...changed,
  };
}

function joined(room: Room, seq: number, missing: number, truncated = false, epoch = "aaaaaaaa"): void {
  room.onJoined({ type: "joined", room: "tea", epoch, seq, missing, truncated, people: 2 });
}

const texts = (room: Room): string[] =>
  room.view().rows.flatMap((row) => (row.kind === "message" ? [row.text] : []));

describe("the position", () => {
  it("moves on messages, on reset, and on joined with nothing missing, never on ack", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 7, 2);
    expect(room.position).toBeNull();
    room.onMessage(message(6));
    room.onMessage(message(7));
    expect(room.position).toEqual({ epoch: "aaaaaaaa", seq: 7 });
    room.onAck("x", "aaaaaaaa", 9);
    expect(room.position?.seq).toBe(7);
    room.onReset("bbbbbbbb", 7, false);
    expect(room.position).toEqual({ epoch: "bbbbbbbb", seq: 7 });
    joined(room, 12, 0, false, "bbbbbbbb");
    expect(room.position).toEqual({ epoch: "bbbbbbbb", seq: 12 });
  });
});

describe("messages", () => {
  it("are shown once, in order, however often they come", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 0, 0);
    expect([1, 2, 2, 1, 3].map((seq) => room.onMessage(message(seq)))).toEqual([
      true,
      true,
      false,
      false,
      true,
    ]);
    expect(texts(room)).toEqual(["text 1", "text 2", "text 3"]);
  });

  it("are grouped by sender and time, with a line for each day", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 0, 0);
    room.onMessage(message(1));
    room.onMessage(message(2));
    room.onMessage(message(3, { user: ADA }));
    room.onMessage(message(4, { user: ADA, ts: NOON + 10 * 60_000 }));
    room.onMessage(message(5, { user: ADA, ts: NOON + 26 * 3_600_000 }));
    const rows = room.view().rows;
    expect(rows.map((row) => row.kind)).toEqual([
      "day",
      "message",
      "message",
      "message",
      "message",
      "day",
      "message",
    ]);
    expect(rows.flatMap((row) => (row.kind === "message" ? [row.first] : []))).toEqual([
      true,
      false,
      true,
      true,
      true,
    ]);
  });

  it("stay bounded, and say that there are older ones", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 0, 0);
    for (let seq = 1; seq <= 10_000; seq += 1) room.onMessage(message(seq));
    const view = room.view();
    expect(view.rows.length).toBeLessThan(2_300);
    expect(view.more).toBe(true);
    expect(texts(room).at(-1)).toBe("text 10000");
  });

  it("of before are put in front without a repeat", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 5, 2);
    room.onMessage(message(4));
    room.onMessage(message(5));
    room.prepend([message(2), message(3), message(4)], true);
    expect(texts(room)).toEqual(["text 2", "text 3", "text 4", "text 5"]);
    expect(room.view().more).toBe(true);
  });

  it("show a hole where some are missing", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 3, 3);
    for (const seq of [1, 2, 3]) room.onMessage(message(seq));
    joined(room, 100, 2, true);
    for (const seq of [99, 100]) room.onMessage(message(seq));
    expect(room.view().rows.map((row) => row.kind)).toEqual([
      "day",
      "message",
      "message",
      "message",
      "hole",
      "message",
      "message",
    ]);
  });

  it("of a store that began anew are not taken for old ones", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 5, 0);
    room.onMessage(message(6));
    room.onReset("bbbbbbbb", 0, true);
    expect(room.onMessage(message(1, { id: "fresh" }))).toBe(true);
    expect(texts(room)).toEqual(["text 1"]);
  });
});

describe("a hole", () => {
  it("is filled with what the log still has, and the rest of it is shown", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 3, 0);
    for (const seq of [4, 5]) room.onMessage(message(seq));
    joined(room, 22, 2, true);
    for (const seq of [21, 22]) room.onMessage(message(seq));
    expect(room.newestHole).toEqual({ before: 5, after: 21 });
    room.fill([message(4), message(19), message(20), message(21)]);
    const kinds = room.view().rows.map((row) => (row.kind === "message" ? row.text : row.kind));
    expect(kinds).toEqual(["day", "text 4", "text 5", "hole", "text 19", "text 20", "text 21", "text 22"]);
    room.fill(Array.from({ length: 13 }, (_, index) => message(6 + index)));
    expect(room.newestHole).toBeNull();
    expect(texts(room)).toHaveLength(19);
    expect(room.view().rows.some((row) => row.kind === "hole")).toBe(false);
  });

  it("is not shown on a page that has just come", () => {
    const room = new Room("tea", () => ADA);
    room.setPending({ ...pendingOf("mine", "hello"), triedAt: NOON, after: { epoch: "old", seq: 3 } });
    expect(room.resumeAt).toEqual({ epoch: "old", seq: 3 });
    joined(room, 22, 1, true);
    room.onMessage(message(22));
    expect(room.view().rows.some((row) => row.kind === "hole")).toBe(false);
    expect(room.view().more).toBe(true);
  });
});

describe("own messages", () => {
  it("are pending at once and confirmed by their id", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 0, 0);
    room.setPending(pendingOf("mine", "hello"));
    const pending = room.view().rows.at(-1);
    expect(pending?.kind === "message" && pending.pending?.id).toBe("mine");
    room.onMessage(message(1, { id: "mine", user: ADA, text: "hello" }));
    const confirmed = room.view().rows.at(-1);
    expect(confirmed?.kind === "message" && confirmed.pending).toBeNull();
    expect(texts(room)).toEqual(["hello"]);
  });

  it("are not confirmed by somebody else's message of the same id", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 0, 0);
    room.setPending(pendingOf("same", "mine"));
    room.onMessage(message(1, { id: "same", user: BOB, text: "theirs" }));
    expect(texts(room)).toEqual(["theirs", "mine"]);
  });

  it("are confirmed by an ack where the message is here already", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 9, 0);
    room.setPending(pendingOf("mine", "hello"));
    room.onAck("mine", "aaaaaaaa", 12);
    expect(room.pending.size).toBe(1);
    room.onAck("mine", "aaaaaaaa", 4);
    expect(room.pending.size).toBe(0);
  });
});

describe("people", () => {
  it("come and go by presence, and by name only in small rooms", () => {
    const room = new Room("tea", () => ADA);
    room.onWho([BOB, ADA], 0, 2);
    expect(room.view().users.map((user) => user.name)).toEqual(["Ada", "Bob"]);
    room.onPresence([{ id: "u_c", name: "Cem" }], [BOB], 2);
    expect(room.view().users.map((user) => user.name)).toEqual(["Ada", "Cem"]);
    room.onPresence([], [], 500);
    expect(room.view()).toMatchObject({ users: [], people: 500 });
  });

  it("are writing until they have said it, or for six seconds", () => {
    const room = new Room("tea", () => ADA);
    joined(room, 0, 0);
    room.onTyping([BOB, ADA], NOON);
    expect(room.view().typing).toEqual([BOB]);
    room.onMessage(message(1));
    expect(room.view().typing).toEqual([]);
    room.onTyping([BOB], NOON);
    expect(room.expireTyping(NOON + 5_000)).toBe(false);
    expect(room.expireTyping(NOON + 6_000)).toBe(true);
    expect(room.view().typing).toEqual([]);
  });
});

it("a view stays the same object until something changes", () => {
  const room = new Room("tea", () => ADA);
  const view = room.view();
  expect(room.view()).toBe(view);
  room.onPresence([], [], 5);
  expect(room.view()).not.toBe(view);
});
