import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { backoff } from "../src/backoff";
import { ChatStore } from "../src/store";
import { ADA, BOB, FakeSocket, fakeApi } from "./server";

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

function joined(seq: number, missing = 0): void {
  socket().say({ type: "joined", room: "tea", epoch: "aaaaaaaa", seq, missing, truncated: false, people: 2 });
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

  it("waits while disconnected and goes out again under the same id", async () => {
    await started();
    store.say("tea", "one");
    const [first] = socket().of("send");
    socket().fall();
    store.say("tea", "two");
    await vi.advanceTimersByTimeAsync(5_000);
    socket().open();
    expect(socket().of("send")).toEqual([]);
    joined(0);
    const again = socket().of("send");
    expect(again.map((command) => command.text)).toEqual(["one", "two"]);
    expect(again[0]?.id).toBe(first?.id);
  });

  it("tries again by itself when it is told to, and gives the choice to the person at last", async () => {
    await started();
    store.say("tea", "hello");
    const id = socket().of("send")[0]?.id ?? "";
    for (let tries = 1; tries <= 4; tries += 1) {
      expect(socket().of("send")).toHaveLength(tries);
      socket().say({
        type: "error",
        code: "unavailable",
        message: "Away.",
        room: "tea",
        id,
        retry_after_ms: 100,
      });
      await vi.advanceTimersByTimeAsync(150);
    }
    frame();
    expect(store.room("tea")?.rows.at(-1)).toMatchObject({ pending: { failed: "Away." } });
    store.retry("tea", id);
    expect(socket().of("send").at(-1)?.id).toBe(id);
    store.discard("tea", id);
    frame();
    expect(store.room("tea")?.rows).toEqual([]);
  });
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
