import * as api from "./api";
import type { Link } from "./connection";
import { Connection } from "./connection";
import type { ErrorEvent_, ServerEvent, User } from "./protocol";
import { newId } from "./protocol";
import type { RoomView } from "./room";
import { Room } from "./room";

/** What components see besides rooms; replaced, never changed. */
export interface AppView {
  readonly phase: "starting" | "sign-in" | "chat";
  readonly user: User | null;
  readonly link: Link;
  readonly retryAt: number | null;
  readonly storeDown: boolean;
  readonly rooms: readonly RoomView[];
  readonly current: string | null;
  readonly active: readonly api.ActiveRoom[];
  readonly problem: string | null;
}

export interface StoreOptions {
  url?: string;
  makeSocket?: (url: string) => WebSocket;
  /** Runs a callback with the next animation frame; tests give their own. */
  schedule?: (callback: () => void) => void;
}

const HISTORY = 50;
const ACTIVE_MS = 15_000;
const TYPING_MS = 2_500;
// A refused send is tried again by itself so often; after that the person decides.
const MAX_TRIES = 4;
const REMEMBERED = "tornadochat.rooms";
const DRAFT = "tornadochat.draft.";

/**
 * All state of the chat, outside React. Events change rooms at once; views are made and listeners called
 * at most once for each animation frame, however many messages came.
 */
export class ChatStore {
  private readonly listeners = new Set<() => void>();
  private readonly rooms = new Map<string, Room>();
  private readonly tries = new Map<string, number>();
  private connection: Connection | null = null;
  private scheduled = false;
  private typedAt = 0;
  private timers: ReturnType<typeof setInterval>[] = [];
  private state: Omit<AppView, "rooms"> = {
    phase: "starting",
    user: null,
    link: "stopped",
    retryAt: null,
    storeDown: false,
    current: null,
    active: [],
    problem: null,
  };
  private appView: AppView;
  private roomViews = new Map<string, RoomView>();

  constructor(private readonly options: StoreOptions = {}) {
    this.appView = { ...this.state, rooms: [] };
  }

  // What React reads ------------------------------------------------------------------------------

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  readonly app = (): AppView => this.appView;

  room(name: string): RoomView | null {
    return this.roomViews.get(name) ?? null;
  }

  private update(change: Partial<Omit<AppView, "rooms">> = {}): void {
    this.state = { ...this.state, ...change };
    if (this.scheduled) return;
    this.scheduled = true;
    const schedule = this.options.schedule ?? frame;
    schedule(() => this.flush());
  }

  private flush(): void {
    this.scheduled = false;
    const views = [...this.rooms.values()].map((room) => room.view());
    this.roomViews = new Map(views.map((view) => [view.name, view]));
    const same =
      views.length === this.appView.rooms.length && views.every((view, i) => view === this.appView.rooms[i]);
    this.appView = { ...this.state, rooms: same ? this.appView.rooms : views };
    for (const listener of this.listeners) listener();
  }

  // Life ------------------------------------------------------------------------------------------

  /** Finds out who this browser is; asks for a name where it is nobody yet. */
  async start(): Promise<void> {
    try {
      this.enter((await api.readSession()).user);
    } catch (error) {
      const unknown = error instanceof api.ApiError && error.status === 401;
      this.update({ phase: "sign-in", problem: unknown ? null : wordsOf(error) });
    }
  }

  async signIn(name: string): Promise<void> {
    try {
      this.enter((await api.signIn(name)).user);
    } catch (error) {
      this.update({ problem: wordsOf(error) });
    }
  }

  async signOut(): Promise<void> {
    this.stop();
    this.rooms.clear();
    localStorage.removeItem(REMEMBERED);
    await api.signOut().catch(() => null);
    this.update({ phase: "sign-in", user: null, current: null, problem: null });
  }

  private enter(user: User): void {
    this.update({ phase: "chat", user, problem: null });
    for (const name of remembered()) this.open(name);
    if (this.state.current === null) this.update({ current: this.rooms.keys().next().value ?? null });
    const { url = socketUrl(), makeSocket } = this.options;
    this.connection = new Connection({
      url,
      askSession: api.askSession,
      onEvent: (event) => this.onEvent(event),
      onLink: (link, retryAt) => this.onLink(link, retryAt),
      ...(makeSocket === undefined ? {} : { makeSocket }),
    });
    this.connection.start();
    this.timers = [
      setInterval(() => void this.refreshActive(), ACTIVE_MS),
      setInterval(() => this.expireTyping(), 1_000),
    ];
    void this.refreshActive();
    document.addEventListener("visibilitychange", this.onVisible);
  }

  /** Ends the connection and all timers. */
  stop(): void {
    for (const timer of this.timers) clearInterval(timer);
    this.timers = [];
    document.removeEventListener("visibilitychange", this.onVisible);
    this.connection?.stop();
    this.connection = null;
  }

  readonly retryNow = (): void => this.connection?.retryNow();

  private readonly onVisible = (): void => {
    if (document.visibilityState === "visible" && this.state.current !== null)
      this.select(this.state.current);
  };

  private onLink(link: Link, retryAt: number | null): void {
    if (link !== "open") {
      for (const room of this.rooms.values()) {
        room.joined = false;
        room.touch();
      }
    }
    if (link === "signed-out") this.update({ phase: "sign-in", problem: "Your session has ended." });
    this.update({ link, retryAt });
  }

  private async refreshActive(): Promise<void> {
    if (document.visibilityState !== "visible") return;
    const active = await api.activeRooms().catch(() => null);
    if (active !== null) this.update({ active });
  }

  private expireTyping(): void {
    const now = Date.now();
    let changed = false;
    for (const room of this.rooms.values()) changed = room.expireTyping(now) || changed;
    if (changed) this.update();
  }

  // Rooms -----------------------------------------------------------------------------------------

  /** Joins a room (or goes to it) and shows it. */
  join(name: string): void {
    const wanted = name.trim().normalize("NFC");
    if (wanted === "") return;
    this.open(wanted);
    this.select(wanted);
  }

  private open(name: string): void {
    if (this.rooms.has(name)) return;
    const room = new Room(name, () => this.state.user);
    this.rooms.set(name, room);
    remember([...this.rooms.keys()]);
    this.sendJoin(room);
    this.update();
  }

  leave(name: string): void {
    this.connection?.send({ type: "leave", room: name });
    this.forget(name);
  }

  private forget(name: string): void {
    this.rooms.delete(name);
    remember([...this.rooms.keys()]);
    const current =
      this.state.current === name ? (this.rooms.keys().next().value ?? null) : this.state.current;
    this.update({ current });
  }

  /** Shows a room; null shows the list of rooms on a small screen. */
  select(name: string | null): void {
    const room = name === null ? undefined : this.rooms.get(name);
    if (room !== undefined) {
      room.unread = 0;
      room.touch();
    }
    this.update({ current: name });
  }

  private sendJoin(room: Room): void {
    const position = room.position;
    this.connection?.send({
      type: "join",
      room: room.name,
      history: HISTORY,
      ...(position === null ? {} : { after: position }),
    });
  }

  /** Loads what was said before the oldest message here. */
  async loadOlder(name: string): Promise<void> {
    const room = this.rooms.get(name);
    if (room === undefined || room.loading || !room.more || room.firstSeq <= 1) return;
    room.loading = true;
    room.touch();
    this.update();
    try {
      const page = await api.history(name, room.firstSeq, HISTORY);
      room.prepend(page.messages, page.more);
    } catch (error) {
      room.loading = false;
      room.notice = wordsOf(error);
      room.touch();
    }
    this.update();
  }

  /** Tells whether somebody reads old messages of a room just now. */
  setReading(name: string, reading: boolean): void {
    const room = this.rooms.get(name);
    if (room !== undefined) room.reading = reading;
  }

  // Saying something ------------------------------------------------------------------------------

  say(name: string, text: string): void {
    const room = this.rooms.get(name);
    if (room === undefined || text.trim() === "") return;
    const id = newId();
    room.setPending({ id, text, at: Date.now(), failed: null });
    this.transmit(room, id);
    this.saveDraft(name, "");
    this.typedAt = 0; // whoever begins anew is told of at once
    this.update();
  }

  /** Sends a failed message again, under the same id: it is stored once. */
  retry(name: string, id: string): void {
    const room = this.rooms.get(name);
    const pending = room?.pending.get(id);
    if (room === undefined || pending === undefined) return;
    this.tries.delete(id);
    room.setPending({ ...pending, failed: null });
    this.transmit(room, id);
    this.update();
  }

  discard(name: string, id: string): void {
    const room = this.rooms.get(name);
    room?.pending.delete(id);
    room?.touch();
    this.update();
  }

  private transmit(room: Room, id: string): void {
    const pending = room.pending.get(id);
    // While the room is not joined the message waits; `joined` sends what waits.
    if (pending !== undefined && pending.failed === null && room.joined) {
      this.connection?.send({ type: "send", room: room.name, id, text: pending.text });
    }
  }

  typing(name: string): void {
    const now = Date.now();
    if (now - this.typedAt < TYPING_MS) return;
    this.typedAt = now;
    if (this.rooms.get(name)?.joined) this.connection?.send({ type: "typing", room: name });
  }

  draft(name: string): string {
    return sessionStorage.getItem(DRAFT + name) ?? "";
  }

  saveDraft(name: string, text: string): void {
    if (text === "") sessionStorage.removeItem(DRAFT + name);
    else sessionStorage.setItem(DRAFT + name, text);
  }

  // Events ----------------------------------------------------------------------------------------

  private onEvent(event: ServerEvent): void {
    switch (event.type) {
      case "welcome":
        this.update({ user: event.user, storeDown: false });
        for (const room of this.rooms.values()) this.sendJoin(room);
        break;
      case "status":
        this.update({ storeDown: event.broker === "down" });
        break;
      case "error":
        this.onError(event);
        break;
      case "pong":
      case "bye":
        break;
      default:
        this.onRoomEvent(event);
    }
    this.update();
  }

  private onRoomEvent(
    event: Exclude<ServerEvent, { type: "welcome" | "status" | "error" | "pong" | "bye" }>,
  ): void {
    const room = this.rooms.get(event.room);
    if (room === undefined) return;
    switch (event.type) {
      case "joined":
        room.onJoined(event);
        this.connection?.send({ type: "who", room: room.name });
        for (const id of room.pending.keys()) this.transmit(room, id);
        break;
      case "message":
        if (room.onMessage(event)) this.countUnread(room, event.user);
        break;
      case "ack":
        room.onAck(event.id, event.seq);
        break;
      case "reset":
        room.onReset(event.epoch, event.seq, event.truncated);
        break;
      case "gap":
        this.sendJoin(room);
        break;
      case "presence":
        room.onPresence(event.joined, event.left, event.people);
        break;
      case "who":
        room.onWho(event.users, event.offset, event.people);
        break;
      case "typing":
        room.onTyping(event.users, Date.now());
        break;
      case "left":
        if (event.reason === "removed") this.forget(event.room);
        break;
    }
  }

  private countUnread(room: Room, user: User): void {
    if (user.id === this.state.user?.id) return;
    if (room.name !== this.state.current || document.visibilityState !== "visible") room.unread += 1;
  }

  private onError(event: ErrorEvent_): void {
    const room = event.room === undefined ? undefined : this.rooms.get(event.room);
    if (room === undefined) {
      this.update({ problem: event.message });
      return;
    }
    const pending = event.id === undefined ? undefined : room.pending.get(event.id);
    const again = event.retry_after_ms !== undefined;
    if (pending !== undefined) {
      const tries = (this.tries.get(pending.id) ?? 0) + 1;
      this.tries.set(pending.id, tries);
      if (again && tries < MAX_TRIES) {
        setTimeout(() => this.transmit(room, pending.id), event.retry_after_ms);
      } else {
        room.setPending({ ...pending, failed: event.message });
      }
    } else if (event.code === "unavailable" && again && !room.joined) {
      setTimeout(() => this.sendJoin(room), event.retry_after_ms);
    } else {
      room.notice = event.message;
      room.touch();
    }
  }
}

function frame(callback: () => void): void {
  // A hidden page gets no animation frames, but its unread counts go on.
  if (document.visibilityState === "visible") requestAnimationFrame(callback);
  else setTimeout(callback, 250);
}

function socketUrl(): string {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`;
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function remembered(): string[] {
  try {
    const found: unknown = JSON.parse(localStorage.getItem(REMEMBERED) ?? "[]");
    return Array.isArray(found) ? found.filter((name) => typeof name === "string") : [];
  } catch {
    return [];
  }
}

function remember(names: string[]): void {
  localStorage.setItem(REMEMBERED, JSON.stringify(names));
}
