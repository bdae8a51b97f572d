import * as api from "./api";
import type { Link } from "./connection";
import { Connection } from "./connection";
import type { Pending } from "./outbox";
import { Outbox } from "./outbox";
import type { ErrorEvent_, MessageEvent_, ResetEvent, ServerEvent, User } from "./protocol";
import type { RoomView } from "./room";
import { Room } from "./room";
import { Sender } from "./sender";
import { draft, forgetRooms, rememberedRooms, rememberRooms, saveDraft } from "./storage";

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
  /** Opens what keeps unconfirmed messages; tests give their own. */
  openOutbox?: typeof Outbox.open;
}

const HISTORY = 50;
const ACTIVE_MS = 15_000;
const TYPING_MS = 2_500;
// A hole is filled with what the log still has, at most so many times fifty messages.
const MAX_FILLS = 4;

/**
 * All state of the chat, outside React. Events change rooms at once; views are made and listeners called
 * at most once for each animation frame, however many messages came.
 */
export class ChatStore {
  private readonly listeners = new Set<() => void>();
  private readonly rooms = new Map<string, Room>();
  private readonly sender = new Sender({
    send: (command) => this.connection?.send(command) ?? false,
    changed: () => this.update(),
  });
  private connection: Connection | null = null;
  private visits = 0;
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
      await this.enter((await api.readSession()).user);
    } catch (error) {
      const unknown = error instanceof api.ApiError && error.status === 401;
      this.update({ phase: "sign-in", problem: unknown ? null : wordsOf(error) });
    }
  }

  async signIn(name: string): Promise<void> {
    try {
      await this.enter((await api.signIn(name)).user);
    } catch (error) {
      this.update({ problem: wordsOf(error) });
    }
  }

  async signOut(): Promise<void> {
    if (this.state.user !== null) await this.sender.outbox?.forget(this.state.user.id).catch(() => null);
    this.stop();
    for (const room of this.rooms.values()) this.sender.pause(room);
    this.rooms.clear();
    forgetRooms();
    await api.signOut().catch(() => null);
    this.update({ phase: "sign-in", user: null, current: null, problem: null });
  }

  private async enter(user: User): Promise<void> {
    if (this.connection !== null) this.stop();
    this.visits += 1;
    const visit = this.visits;
    for (const room of this.rooms.values()) this.sender.reown(room, user);
    this.update({ phase: "chat", user, problem: null });
    for (const name of rememberedRooms()) this.open(name);
    if (this.state.current === null) this.update({ current: this.rooms.keys().next().value ?? null });
    // What was said before a reload has its part in where each room is resumed.
    this.sender.outbox = await (this.options.openOutbox ?? Outbox.open)((found) => this.adopt(found));
    await this.sender.outbox.adopt(user.id);
    if (visit === this.visits) this.connect();
  }

  private adopt(found: readonly Pending[]): void {
    for (const name of new Set(found.map((message) => message.room))) {
      this.open(name);
      const room = this.rooms.get(name);
      const messages = found.filter((message) => message.room === name);
      if (room !== undefined) this.sender.adopt(room, messages);
    }
    this.update();
  }

  private connect(): void {
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
      setInterval(() => this.refresh(), ACTIVE_MS),
      setInterval(() => this.expireTyping(), 1_000),
    ];
    void this.refreshActive();
    document.addEventListener("visibilitychange", this.onVisible);
  }

  /** Ends the connection and all timers. */
  stop(): void {
    for (const timer of this.timers) clearInterval(timer);
    this.timers = [];
    this.visits += 1;
    document.removeEventListener("visibilitychange", this.onVisible);
    this.connection?.stop();
    this.connection = null;
    this.sender.outbox?.close();
    this.sender.outbox = null;
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
        this.sender.pause(room);
        room.touch();
      }
    }
    if (link === "signed-out") this.update({ phase: "sign-in", problem: "Your session has ended." });
    this.update({ link, retryAt });
  }

  private refresh(): void {
    void this.refreshActive();
    if (this.state.user !== null) void this.sender.outbox?.adopt(this.state.user.id);
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
    rememberRooms([...this.rooms.keys()]);
    this.sendJoin(room);
    this.update();
  }

  leave(name: string): void {
    this.connection?.send({ type: "leave", room: name });
    this.forget(name);
  }

  private forget(name: string): void {
    const room = this.rooms.get(name);
    if (room !== undefined) this.sender.pause(room); // or the end of one message would send the next one
    for (const id of room?.pending.keys() ?? []) this.discard(name, id);
    this.rooms.delete(name);
    rememberRooms([...this.rooms.keys()]);
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

  private rejoin(room: Room): void {
    if (this.rooms.get(room.name) === room && !room.live) this.sendJoin(room);
  }

  private sendJoin(room: Room): void {
    const after = room.resumeAt;
    this.connection?.send({
      type: "join",
      room: room.name,
      history: HISTORY,
      ...(after === null ? {} : { after }),
    });
  }

  /** Loads what the log still has of a hole; the rest of it is shown. */
  private async fillHole(room: Room): Promise<void> {
    for (let fills = 0; fills < MAX_FILLS; fills += 1) {
      const hole = room.newestHole;
      if (hole === null) return;
      const page = await api.history(room.name, hole.after, HISTORY).catch(() => null);
      if (page === null) return;
      room.fill(page.messages);
      this.update();
      if (!page.more || room.newestHole?.after === hole.after) return;
    }
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

  /** Says something; false where too much waits to be sent already. */
  say(name: string, text: string): boolean {
    const room = this.rooms.get(name);
    const { user } = this.state;
    if (room === undefined || user === null || text.trim() === "") return false;
    const taken = this.sender.say(room, user, text);
    if (taken) {
      saveDraft(name, "");
      this.typedAt = 0; // whoever begins anew is told of at once
    }
    this.update();
    return taken;
  }

  /** Sends a failed message again, under the same id: it is stored once. */
  retry(name: string, id: string): void {
    const room = this.rooms.get(name);
    if (room !== undefined) this.sender.retry(room, id);
    this.update();
  }

  discard(name: string, id: string): void {
    const room = this.rooms.get(name);
    if (room !== undefined) this.sender.discard(room, id);
    this.update();
  }

  typing(name: string): void {
    const now = Date.now();
    if (now - this.typedAt < TYPING_MS) return;
    this.typedAt = now;
    if (this.rooms.get(name)?.joined) this.connection?.send({ type: "typing", room: name });
  }

  readonly draft = draft;
  readonly saveDraft = saveDraft;

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
        if (event.truncated) this.sender.askAboutOld(room);
        room.onJoined(event);
        this.connection?.send({ type: "who", room: room.name });
        this.caughtUp(room, event.truncated);
        break;
      case "message":
        this.onMessage(room, event);
        break;
      case "ack":
        this.sender.confirm(room, event.id);
        room.onAck(event.id, event.epoch, event.seq);
        this.sender.advance(room);
        break;
      case "reset":
        if (event.truncated) this.sender.askAboutOld(room);
        this.onReset(room, event);
        break;
      case "gap":
        this.sender.pause(room);
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

  private onMessage(room: Room, event: MessageEvent_): void {
    const behind = !room.caughtUp;
    const own = event.user.id === this.state.user?.id;
    if (own) this.sender.confirm(room, event.id);
    if (room.onMessage(event)) this.countUnread(room, event.user);
    if (behind) this.caughtUp(room, false);
    else if (own) this.sender.advance(room);
  }

  private onReset(room: Room, event: ResetEvent): void {
    const behind = room.live && !room.caughtUp;
    room.onReset(event.epoch, event.seq, event.truncated);
    if (behind) {
      // Where this replay ends is not known any more.
      this.sender.pause(room);
      this.sendJoin(room);
    } else {
      this.caughtUp(room, event.truncated);
    }
  }

  /** Everything that was missing has come: what waits goes out, and what is not here is looked for. */
  private caughtUp(room: Room, truncated: boolean): void {
    if (truncated) void this.fillHole(room);
    if (!room.caughtUp) return;
    this.sender.advance(room);
    if (room.size < HISTORY && room.more) void this.loadOlder(room.name);
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
    if (this.sender.refused(room, event)) {
      if (event.code === "not_joined") this.sendJoin(room);
    } else if (event.code === "unavailable" && event.retry_after_ms !== undefined) {
      // The room could not be read, and the server has let this client out of it.
      room.joined = false;
      room.touch();
      this.sender.pause(room);
      setTimeout(() => this.rejoin(room), event.retry_after_ms);
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
