import * as fakeIndexedDB from "fake-indexeddb";
import { openDB } from "idb";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { backoff } from "../src/backoff";
import type { Pending } from "../src/outbox";
import { Outbox } from "../src/outbox";
import { ChatStore } from "../src/store";
import { ADA, BOB, FakeLocks, FakeSocket, fakeApi } from "./server";

let store: ChatStore;
const frames: (() => void)[] = [];

/** Runs what waits for the next animation frame. */
function frame(): void {
  for (const callback of frames.splice(0)) callback();
}

function socket(): FakeSocket {
  const last = FakeSocket.all.at(-1);
  if (last === undefined) throw new Error("nothing has connected");
  return last;
}

function message(seq: number, id = `id-${seq}`, user = BOB) {
  return { type: "message" as const, seq, room: "tea", id, user, text: `text ${seq}`, ts: 1_790_000_000_000 };
}

const JOINED = { type: "joined" as const, room: "tea", epoch: "aaaaaaaa", truncated: false, people: 2 };

/** Messages of "tea" that are drawn as not confirmed. */
function pendings(): Pending[] {
  const rows = store.room("tea")?.rows ?? [];
  return rows.flatMap((row) => (row.kind === "message" && row.pending !== null ? [row.pending] : []));
}

function refusal(code: string, id: string, retry_after_ms?: number) {
  const pause = retry_after_ms === undefined ? {} : { retry_after_ms };
  return { type: "error" as const, code, message: "No.", room: "tea", id, ...pause };
}

function joined(seq: number, missing = 0): void {
  socket().say({ ...JOINED, seq, missing });
}

async function started(): Promise<void> {
  await store.start();
  socket().open();
  store.join("tea");
  joined(0);
  frame();
}

beforeEach(() => {
  vi.useFakeTimers();
  localStorage.clear();
  sessionStorage.clear();
  FakeSocket.all.length = 0;
  frames.length = 0;
  fakeApi();
  store = new ChatStore({
    url: "ws://test/ws",
    makeSocket: () => new FakeSocket() as unknown as WebSocket,
    schedule: (callback) => frames.push(callback),
  });
});

afterEach(() => {
  store.stop();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("coming in", () => {
  it("asks for a name where the browser is nobody yet", async () => {
    fakeApi(401);
    await store.start();
    frame();
    expect(store.app()).toMatchObject({ phase: "sign-in", problem: null });
    fakeApi(201);
    await store.signIn("Ada");
    frame();
    expect(store.app()).toMatchObject({ phase: "chat", user: ADA });
  });

  it("shows the server's words when a name will not do", async () => {
    fakeApi(400);
    await store.signIn("");
    frame();
    expect(store.app().problem).toBe("Sign in first.");
  });

  it("joins the rooms that were open before a reload", async () => {
    localStorage.setItem("tornadochat.rooms", '["tea","coffee"]');
    await store.start();
    socket().open();
    expect(
      socket()
        .of("join")
        .map((command) => command.room),
    ).toEqual(["tea", "coffee"]);
  });
});

describe("listeners", () => {
  it("are called once for each frame, however many messages came", async () => {
    await started();
    const listener = vi.fn();
    store.subscribe(listener);
    for (let seq = 1; seq <= 200; seq += 1) socket().say(message(seq));
    expect(listener).not.toHaveBeenCalled();
    frame();
    expect(listener).toHaveBeenCalledTimes(1);
    expect(store.room("tea")?.rows.filter((row) => row.kind === "message")).toHaveLength(200);
  });

  it("see the same view of a room in which nothing happened", async () => {
    await started();
    store.join("coffee");
    frame();
    const tea = store.room("tea");
    socket().say({ ...message(1), room: "coffee" });
    frame();
    expect(store.room("tea")).toBe(tea);
  });
});

describe("sending", () => {
  it("is pending at once and confirmed by the own copy", async () => {
    await started();
    store.say("tea", "hello");
    frame();
    const [sent] = socket().of("send");
    expect(sent).toMatchObject({ room: "tea", text: "hello" });
    expect(store.room("tea")?.rows.at(-1)).toMatchObject({ text: "hello", pending: { failed: null } });
    socket().say(message(1, sent?.id, ADA));
    frame();
    expect(store.room("tea")?.rows.filter((row) => row.kind === "message")).toHaveLength(1);
  });

  it("waits while disconnected and goes out again under the same id, in order", async () => {
    await started();
    store.say("tea", "one");
    const [first] = socket().of("send");
    socket().fall();
    store.say("tea", "two");
    await vi.advanceTimersByTimeAsync(5_000);
    socket().open();
    expect(socket().of("send")).toEqual([]);
    joined(0);
    expect(socket().of("send")).toEqual([{ ...first }]);
    socket().say(message(1, first?.id, ADA));
    expect(
      socket()
        .of("send")
        .map((command) => command.text),
    ).toEqual(["one", "two"]);
  });

  it("waits for the end of the replay, which may confirm it", async () => {
    await started();
    store.say("tea", "one");
    const id = socket().of("send")[0]?.id;
    socket().fall();
    await vi.advanceTimersByTimeAsync(5_000);
    socket().open();
    joined(2, 2);
    socket().say(message(1));
    expect(socket().of("send")).toEqual([]);
    socket().say(message(2, id, ADA));
    frame();
    expect(socket().of("send")).toEqual([]);
    expect(store.room("tea")?.rows.filter((row) => row.kind === "message" && row.pending)).toEqual([]);
  });

  it("is tried again for as long as the server says so, and later messages wait behind it", async () => {
    await started();
    store.say("tea", "one");
    store.say("tea", "two");
    const id = socket().of("send")[0]?.id ?? "";
    for (let tries = 1; tries <= 8; tries += 1) {
      expect(socket().of("send")).toHaveLength(tries);
      socket().say(refusal("unavailable", id, 100));
      await vi.advanceTimersByTimeAsync(150);
    }
    expect(
      new Set(
        socket()
          .of("send")
          .map((command) => command.id),
      ),
    ).toEqual(new Set([id]));
    socket().say(message(1, id, ADA));
    expect(socket().of("send").at(-1)?.text).toBe("two");
  });

  it("is asked for again when no confirmation comes", async () => {
    await started();
    store.say("tea", "one");
    await vi.advanceTimersByTimeAsync(21_000);
    const [first, second] = socket().of("send");
    expect(second).toEqual(first);
  });

  it("gives the choice to the person when it is refused for good", async () => {
    await started();
    store.say("tea", "hello");
    store.say("tea", "next");
    const id = socket().of("send")[0]?.id ?? "";
    socket().say(refusal("forbidden", id));
    frame();
    expect(pendings()).toMatchObject([{ failed: "Not sent: No." }, { failed: null }]);
    expect(socket().of("send").at(-1)?.text).toBe("next");
    store.retry("tea", id);
    socket().say(message(1, socket().of("send").at(-1)?.id, ADA));
    expect(socket().of("send").at(-1)?.id).toBe(id);
    store.discard("tea", id);
    frame();
    expect(pendings()).toEqual([]);
  });

  it("asks the person about an old message where the replay has a hole", async () => {
    await started();
    store.say("tea", "last night");
    socket().fall();
    await vi.advanceTimersByTimeAsync(10 * 60_000);
    store.say("tea", "this morning");
    for (const each of FakeSocket.all.slice(0, -1)) expect(each.readyState).not.toBe(WebSocket.OPEN);
    socket().open();
    socket().say({ ...JOINED, seq: 90, missing: 0, truncated: true });
    frame();
    expect(pendings()[0]?.failed).toContain("not known whether");
    expect(
      socket()
        .of("send")
        .map((command) => command.text),
    ).toEqual(["this morning"]);
  });

  it("sends an old message again behind an unbroken replay that does not have it", async () => {
    await started();
    store.say("tea", "last night");
    socket().fall();
    await vi.advanceTimersByTimeAsync(10 * 60_000);
    socket().open();
    joined(1, 1);
    expect(socket().of("send")).toEqual([]);
    socket().say(message(1));
    expect(socket().of("send")).toMatchObject([{ text: "last night" }]);
  });

  it("is not drawn twice nor sent again when an ack comes before the copy", async () => {
    await started();
    store.say("tea", "hello");
    const id = socket().of("send")[0]?.id ?? "";
    socket().say({ type: "ack", room: "tea", id, epoch: "aaaaaaaa", seq: 1 });
    frame();
    expect(pendings()).toHaveLength(1);
    store.say("tea", "next");
    expect(socket().of("send")).toHaveLength(2);
    socket().say(message(1, id, ADA));
    frame();
    expect(pendings()).toHaveLength(1);
  });

  it("is given up with its room, and what waited behind it is not sent there any more", async () => {
    await started();
    store.say("tea", "one");
    store.say("tea", "two");
    store.leave("tea");
    await vi.advanceTimersByTimeAsync(22_000);
    expect(
      socket()
        .of("send")
        .map((command) => command.text),
    ).toEqual(["one"]);
  });

  it("refuses more than two hundred that wait, and keeps the draft", async () => {
    await started();
    socket().fall();
    for (let count = 0; count < 200; count += 1) expect(store.say("tea", `line ${count}`)).toBe(true);
    expect(store.say("tea", "one too many")).toBe(false);
    frame();
    expect(store.room("tea")?.notice).toContain("200 messages wait");
  });
});

describe("the outbox", () => {
  const shared = new FakeLocks();

  beforeEach(async () => {
    vi.useRealTimers();
    for (const [name, value] of Object.entries(fakeIndexedDB)) vi.stubGlobal(name, value);
    vi.stubGlobal("indexedDB", new fakeIndexedDB.IDBFactory());
  });

  function page(): ChatStore {
    return new ChatStore({
      url: "ws://test/ws",
      makeSocket: () => new FakeSocket() as unknown as WebSocket,
      schedule: (callback) => frames.push(callback),
      openOutbox: (onAdopted) => Outbox.open(onAdopted, shared as unknown as LockManager),
    });
  }

  const sent = () => vi.waitFor(() => expect(socket().of("send")).not.toEqual([]));

  it("brings back what was not confirmed before a reload, and resumes where it was sent", async () => {
    store = page();
    await started();
    socket().say(message(1));
    store.say("tea", "hello");
    await sent();
    const [first] = socket().of("send");
    store.stop(); // the page is gone

    store = page();
    await store.start();
    socket().open();
    expect(socket().of("join")).toMatchObject([{ room: "tea", after: { epoch: "aaaaaaaa", seq: 1 } }]);
    joined(1);
    await sent();
    expect(socket().of("send")).toEqual([first]);
    socket().say(message(2, first?.id, ADA));
    frame();
    expect(pendings()).toEqual([]);
    store.stop();

    store = page();
    await store.start();
    socket().open();
    expect(socket().of("join")).toEqual([{ type: "join", room: "tea", history: 50 }]);
  });

  it("leaves to another page what is said there, until that page is gone", async () => {
    const other = page();
    store = other;
    await started();
    socket().fall();
    other.say("tea", "from the other page");
    await vi.waitFor(async () => expect(await countMessages()).toBe(1));

    store = page();
    await started();
    frame();
    expect(pendings()).toEqual([]);
    expect(socket().of("send")).toEqual([]);
    const mine = socket();
    other.stop();
    await vi.waitFor(() => expect(mine.of("send")).toMatchObject([{ text: "from the other page" }]));
  });

  it("does without a database that does not open", async () => {
    vi.stubGlobal("indexedDB", {
      open: () => {
        throw new Error("no room");
      },
    });
    store = page();
    await started();
    store.say("tea", "hello");
    expect(socket().of("send")).toHaveLength(1);
  });

  async function countMessages(): Promise<number> {
    const db = await openDB("tornadochat", 1);
    const count = await db.count("messages");
    db.close();
    return count;
  }
});

describe("a lost connection", () => {
  it("comes back with back-off and resumes where it was", async () => {
    await started();
    socket().say(message(1));
    socket().fall();
    frame();
    expect(store.app().link).not.toBe("open");
    await vi.advanceTimersByTimeAsync(1_000);
    expect(FakeSocket.all).toHaveLength(2);
    socket().open();
    expect(socket().of("join")).toEqual([
      { type: "join", room: "tea", history: 50, after: { epoch: "aaaaaaaa", seq: 1 } },
    ]);
  });

  it("obeys the time that bye gives", async () => {
    await started();
    socket().say({ type: "bye", reason: "drain", retry_after_ms: 4_000 });
    socket().fall(1012);
    await vi.advanceTimersByTimeAsync(3_900);
    expect(FakeSocket.all).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(200);
    expect(FakeSocket.all).toHaveLength(2);
  });

  it("tries at once when the browser is online again", async () => {
    await started();
    socket().say({ type: "bye", reason: "drain", retry_after_ms: 60_000 });
    socket().fall(1012);
    await vi.advanceTimersByTimeAsync(0);
    dispatchEvent(new Event("online"));
    expect(FakeSocket.all).toHaveLength(2);
  });

  it("asks the server why a handshake failed, and asks for a name where it must", async () => {
    await started();
    const api = fakeApi(401);
    socket().fall(1008);
    await vi.advanceTimersByTimeAsync(1_000);
    frame();
    expect(api).toHaveBeenCalledWith("/api/session", expect.anything());
    expect(store.app()).toMatchObject({ phase: "sign-in", link: "signed-out" });
  });

  it("waits as long as a full server says", async () => {
    await store.start();
    fakeApi(503);
    socket().fall();
    await vi.advanceTimersByTimeAsync(2_900);
    expect(FakeSocket.all).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(200);
    expect(FakeSocket.all).toHaveLength(2);
  });

  it("is noticed after 25 s of silence and 10 s without an answer", async () => {
    await started();
    await vi.advanceTimersByTimeAsync(29_000);
    expect(socket().of("ping")).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(11_000);
    expect(FakeSocket.all.length).toBeGreaterThan(1);
  });
});

describe("events", () => {
  it("of a room that could not be read bring the client back into it", async () => {
    await started();
    socket().say({ type: "error", code: "unavailable", message: "Away.", room: "tea", retry_after_ms: 500 });
    frame();
    expect(store.room("tea")?.joined).toBe(false);
    await vi.advanceTimersByTimeAsync(600);
    expect(socket().of("join")).toHaveLength(2);
  });

  it("of a gap ask for what is missing", async () => {
    await started();
    socket().say(message(1));
    socket().say({ type: "gap", room: "tea", epoch: "aaaaaaaa", seq: 1 });
    expect(socket().of("join").at(-1)?.after).toEqual({ epoch: "aaaaaaaa", seq: 1 });
  });

  it("count what is unread in rooms that are not looked at", async () => {
    await started();
    store.join("coffee");
    socket().say(message(1));
    socket().say(message(2, "own", ADA));
    frame();
    expect(store.room("tea")?.unread).toBe(1);
    store.select("tea");
    frame();
    expect(store.room("tea")?.unread).toBe(0);
  });

  it("of the store being away are shown", async () => {
    await started();
    socket().say({ type: "status", broker: "down" });
    frame();
    expect(store.app().storeDown).toBe(true);
  });

  it("of a removal close the room", async () => {
    await started();
    socket().say({ type: "left", room: "tea", reason: "removed" });
    frame();
    expect(store.app()).toMatchObject({ rooms: [], current: null });
  });
});

it("drafts are kept for each room until they are said", async () => {
  await started();
  store.saveDraft("tea", "half");
  expect([store.draft("tea"), store.draft("coffee")]).toEqual(["half", ""]);
  store.say("tea", "half a thought");
  expect(store.draft("tea")).toBe("");
});

it("back-off grows, is jittered, and has an end", () => {
  expect([0, 1, 2, 20].map((attempt) => backoff(attempt, () => 1))).toEqual([500, 1_000, 2_000, 30_000]);
  expect(backoff(5, () => 0)).toBe(0);
});
