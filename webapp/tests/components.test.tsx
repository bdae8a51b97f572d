import { act, cleanup, fireEvent, render, screen } from "@testing-library/react";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { App } from "../src/components/App";
import { StoreContext } from "../src/hooks";
import { ChatStore } from "../src/store";
import { ADA, BOB, FakeSocket, fakeApi } from "./server";

let store: ChatStore;

beforeEach(() => {
  localStorage.clear();
  sessionStorage.clear();
  FakeSocket.all.length = 0;
  vi.stubGlobal("matchMedia", () => ({ matches: false }));
  // jsdom lays nothing out: the virtual list needs a height to know what is in sight.
  vi.spyOn(Element.prototype, "clientHeight", "get").mockReturnValue(600);
  vi.spyOn(Element.prototype, "clientWidth", "get").mockReturnValue(800);
  vi.spyOn(HTMLElement.prototype, "offsetHeight", "get").mockReturnValue(40);
  vi.stubGlobal(
    "ResizeObserver",
    class {
      observe(): void {}
      unobserve(): void {}
      disconnect(): void {}
    },
  );
  Element.prototype.scrollTo = (() => undefined) as typeof Element.prototype.scrollTo;
  store = new ChatStore({
    url: "ws://test/ws",
    makeSocket: () => new FakeSocket() as unknown as WebSocket,
    schedule: (callback) => callback(),
  });
  render(
    <StoreContext value={store}>
      <App />
    </StoreContext>,
  );
});

afterEach(() => {
  cleanup();
  store.stop();
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
});

async function comeIn(): Promise<FakeSocket> {
  fakeApi();
  await act(() => store.start());
  const socket = FakeSocket.all[0];
  if (socket === undefined) throw new Error("nothing has connected");
  act(() => socket.open());
  return socket;
}

it("asks for a name and comes in with it", async () => {
  fakeApi(401);
  await act(() => store.start());
  const button = screen.getByRole("button", { name: "Come in" });
  expect(button).toHaveProperty("disabled", true);
  const api = fakeApi(201);
  fireEvent.change(screen.getByLabelText("What shall others call you?"), { target: { value: "Ada" } });
  await act(async () => fireEvent.click(button));
  expect(api.mock.calls[0]?.[1]).toMatchObject({ method: "POST", body: '{"name":"Ada"}' });
  expect(screen.getByText("Join a room to begin")).toBeTruthy();
});

it("joins a room, shows its messages as a log, and sends on Enter", async () => {
  const socket = await comeIn();
  fireEvent.change(screen.getByLabelText("Name of a room"), { target: { value: "tea" } });
  fireEvent.click(screen.getByRole("button", { name: "Join" }));
  act(() => {
    socket.say({
      type: "joined",
      room: "tea",
      epoch: "aaaaaaaa",
      seq: 1,
      missing: 1,
      truncated: false,
      people: 2,
    });
    socket.say({
      type: "message",
      seq: 1,
      room: "tea",
      id: "a",
      user: BOB,
      text: "hello Ada",
      ts: 1_790_000_000_000,
    });
  });
  expect(screen.getByRole("log", { name: "Messages in tea" }).getAttribute("aria-live")).toBe("polite");
  expect(screen.getByText("hello Ada")).toBeTruthy();
  expect(screen.getByRole("button", { name: "2 people" })).toBeTruthy();
  const field = screen.getByLabelText("Message to tea");
  fireEvent.change(field, { target: { value: "hello Bob" } });
  fireEvent.keyDown(field, { key: "Enter", shiftKey: true });
  expect(socket.of("send")).toHaveLength(0);
  fireEvent.keyDown(field, { key: "Enter" });
  expect(socket.of("send")[0]).toMatchObject({ room: "tea", text: "hello Bob" });
  expect(socket.of("typing")).toHaveLength(1);
  expect(field).toHaveProperty("value", "");
});

it("offers to try again and to discard what was not sent", async () => {
  const socket = await comeIn();
  act(() => {
    store.join("tea");
    socket.say({
      type: "joined",
      room: "tea",
      epoch: "aaaaaaaa",
      seq: 0,
      missing: 0,
      truncated: false,
      people: 1,
    });
    store.say("tea", "refused");
  });
  const id = socket.of("send")[0]?.id ?? "";
  act(() => socket.say({ type: "error", code: "forbidden", message: "You may not.", room: "tea", id }));
  expect(screen.getByText("Not sent: You may not.")).toBeTruthy();
  fireEvent.click(screen.getByRole("button", { name: "Try again" }));
  expect(socket.of("send")).toHaveLength(2);
  act(() => socket.say({ type: "error", code: "forbidden", message: "You may not.", room: "tea", id }));
  fireEvent.click(screen.getByRole("button", { name: "Discard" }));
  expect(screen.queryByText("refused")).toBeNull();
});

it("says when it is disconnected and tries at once when asked", async () => {
  const socket = await comeIn();
  await act(async () => {
    socket.say({ type: "bye", reason: "drain", retry_after_ms: 60_000 });
    socket.fall(1012);
  });
  expect(screen.getByRole("status").textContent).toContain("Disconnected");
  fireEvent.click(screen.getByRole("button", { name: "Try now" }));
  expect(FakeSocket.all).toHaveLength(2);
});

it("shows who is here, who is writing, and rooms that are active", async () => {
  const socket = await comeIn();
  act(() => {
    store.join("tea");
    socket.say({
      type: "joined",
      room: "tea",
      epoch: "aaaaaaaa",
      seq: 0,
      missing: 0,
      truncated: false,
      people: 2,
    });
    socket.say({ type: "who", room: "tea", offset: 0, users: [ADA, BOB], people: 2 });
    socket.say({ type: "typing", room: "tea", users: [BOB] });
  });
  expect(screen.getByText("Bob is writing…")).toBeTruthy();
  expect(screen.getByText("# busy")).toBeTruthy();
  fireEvent.click(screen.getByRole("button", { name: "2 people" }));
  expect(screen.getByRole("complementary", { name: "Who is here" }).textContent).toContain("Bob");
});
