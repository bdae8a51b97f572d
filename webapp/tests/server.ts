import { vi } from "vitest";
import type { Pending } from "../src/outbox";
import type { Command, ServerEvent } from "../src/protocol";

/** Stands at the edge of the page: the one WebSocket that the store has, and what goes through it. */
export class FakeSocket {
  static readonly all: FakeSocket[] = [];
  readyState: number = WebSocket.CONNECTING;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;
  readonly sent: Command[] = [];

  constructor() {
    FakeSocket.all.push(this);
  }

  send(data: string): void {
    this.sent.push(JSON.parse(data));
  }

  close(code = 1000): void {
    this.fall(code);
  }

  open(): void {
    this.readyState = WebSocket.OPEN;
    this.onopen?.();
    this.say({ type: "welcome", user: ADA, session: "s", limits: {} });
  }

  say(event: ServerEvent): void {
    this.onmessage?.({ data: JSON.stringify(event) });
  }

  fall(code = 1006): void {
    this.readyState = WebSocket.CLOSED;
    this.onclose?.({ code });
  }

  of<T extends Command["type"]>(type: T): Extract<Command, { type: T }>[] {
    return this.sent.filter((command): command is Extract<Command, { type: T }> => command.type === type);
  }
}

export const ADA = { id: "u_ada", name: "Ada" };
export const BOB = { id: "u_bob", name: "Bob" };

/** Answers the API as a server does that knows Ada. */
export function fakeApi(status = 200): ReturnType<typeof vi.fn> {
  const answer = vi.fn(async (path: string) => {
    const body = path.startsWith("/api/session")
      ? { user: ADA, token: "t", expires: 0, message: "Sign in first." }
      : path.startsWith("/api/rooms?")
        ? { rooms: [{ room: "busy", people: 3 }] }
        : { epoch: "e", seq: 9, more: false, messages: [] };
    return new Response(JSON.stringify(body), { status, headers: { "Retry-After": "3" } });
  });
  vi.stubGlobal("fetch", answer);
  return answer;
}

/** A message of Ada's that waits in "tea". */
export function pendingOf(id: string, text: string): Pending {
  const at = Date.UTC(2026, 5, 1, 12);
  return { id, text, at, user: ADA.id, room: "tea", triedAt: null, after: null, failed: null };
}

/** Web Locks of one browser, as far as the outbox uses them: one holder for a name, the others in line. */
export class FakeLocks {
  private readonly lines = new Map<string, Promise<unknown>>();

  request(
    name: string,
    options: LockOptions | LockGrantedCallback<unknown>,
    callback?: unknown,
  ): Promise<unknown> {
    const work = (typeof options === "function" ? options : callback) as () => Promise<unknown>;
    const signal = typeof options === "function" ? undefined : options.signal;
    const before = this.lines.get(name) ?? Promise.resolve();
    const granted = before.then(() => (signal?.aborted ? null : work()));
    this.lines.set(
      name,
      granted.catch(() => null),
    );
    return granted;
  }
}
