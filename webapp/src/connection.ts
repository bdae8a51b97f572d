import { backoff } from "./backoff";
import type { Command, ServerEvent } from "./protocol";
import { parseEvent } from "./protocol";

export type Link = "connecting" | "open" | "waiting" | "signed-out" | "stopped";

/** What asks the server whether a handshake would be let in; browsers cannot see the status of a failed one. */
export type AskSession = () => Promise<{ ok: boolean; unauthorized: boolean; retryAfterMs: number }>;

export interface ConnectionOptions {
  url: string;
  askSession: AskSession;
  onEvent: (event: ServerEvent) => void;
  onLink: (link: Link, retryAt: number | null) => void;
  makeSocket?: (url: string) => WebSocket;
}

// A client that has heard nothing for 25 s asks, and leaves 10 s later.
const QUIET_MS = 25_000;
const ANSWER_MS = 10_000;
const LOOK_MS = 2_500;

/** One WebSocket after the other, for as long as it is wanted. Knows no rooms. */
export class Connection {
  private socket: WebSocket | null = null;
  private attempt = 0;
  private heard = 0;
  private asked = false;
  private retryAfterMs: number | null = null;
  private retryTimer: ReturnType<typeof setTimeout> | null = null;
  private lookTimer: ReturnType<typeof setInterval> | null = null;
  private stopped = true;

  constructor(private readonly options: ConnectionOptions) {}

  start(): void {
    if (!this.stopped) return;
    this.stopped = false;
    addEventListener("online", this.retryNow);
    document.addEventListener("visibilitychange", this.onVisible);
    this.lookTimer = setInterval(this.look, LOOK_MS);
    this.connect();
  }

  stop(): void {
    this.stopped = true;
    removeEventListener("online", this.retryNow);
    document.removeEventListener("visibilitychange", this.onVisible);
    if (this.lookTimer !== null) clearInterval(this.lookTimer);
    if (this.retryTimer !== null) clearTimeout(this.retryTimer);
    this.retryTimer = null;
    this.drop()?.close(1000);
    this.options.onLink("stopped", null);
  }

  /** Sends a command if the connection is open; what it returns tells whether it did. */
  send(command: Command): boolean {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(command));
    return true;
  }

  /** Tries at once instead of waiting for the back-off. */
  readonly retryNow = (): void => {
    if (this.stopped || this.socket !== null) return;
    this.attempt = 0;
    this.connect();
  };

  private readonly onVisible = (): void => {
    if (document.visibilityState === "visible") this.retryNow();
  };

  private connect(): void {
    if (this.retryTimer !== null) clearTimeout(this.retryTimer);
    this.retryTimer = null;
    this.options.onLink("connecting", null);
    const make = this.options.makeSocket ?? ((url: string) => new WebSocket(url, "tornadochat.v1"));
    const socket = make(this.options.url);
    let opened = false;
    this.socket = socket;
    socket.onopen = () => {
      opened = true;
      this.heard = Date.now();
      this.asked = false;
    };
    socket.onmessage = (message) => {
      this.heard = Date.now();
      this.asked = false;
      if (typeof message.data === "string") this.receive(message.data);
    };
    socket.onclose = (closed) => {
      if (this.socket !== socket) return;
      this.socket = null;
      void this.recover(!opened || closed.code === 1008);
    };
  }

  private receive(data: string): void {
    const event = parseEvent(data);
    if (event === null) return;
    if (event.type === "welcome") {
      this.attempt = 0;
      this.retryAfterMs = null;
      this.options.onLink("open", null);
    }
    if (event.type === "bye") this.retryAfterMs = event.retry_after_ms;
    this.options.onEvent(event);
  }

  /** After a close: find out whether it makes sense to come back, and when. */
  private async recover(ask: boolean): Promise<void> {
    let pause = this.retryAfterMs ?? backoff(this.attempt);
    this.retryAfterMs = null;
    this.attempt += 1;
    if (ask) {
      const answer = await this.options.askSession();
      if (this.stopped || this.socket !== null) return;
      if (answer.unauthorized) {
        this.stop();
        this.options.onLink("signed-out", null);
        return;
      }
      pause = Math.max(pause, answer.retryAfterMs);
    }
    if (this.stopped) return;
    this.options.onLink("waiting", Date.now() + pause);
    this.retryTimer = setTimeout(() => this.connect(), pause);
  }

  private readonly look = (): void => {
    if (this.socket === null) return;
    const quiet = Date.now() - this.heard;
    if (this.socket.readyState === WebSocket.OPEN && quiet > QUIET_MS + ANSWER_MS) {
      this.drop()?.close();
      void this.recover(false);
    } else if (quiet > QUIET_MS && !this.asked) {
      this.asked = this.send({ type: "ping" });
    }
  };

  private drop(): WebSocket | null {
    const socket = this.socket;
    this.socket = null;
    return socket;
  }
}
