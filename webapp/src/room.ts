import type { Pending } from "./outbox";
import type { JoinedEvent, MessageEvent_, Position, User } from "./protocol";

/** One row of the message list, ready to be drawn. */
export type Row =
  | { readonly kind: "day"; readonly key: string; readonly at: number }
  | { readonly kind: "hole"; readonly key: string }
  | {
      readonly kind: "message";
      readonly key: string;
      readonly user: User;
      readonly text: string;
      readonly at: number;
      readonly first: boolean;
      readonly own: boolean;
      readonly pending: Pending | null;
    };

/** What components see of a room; replaced, never changed. */
export interface RoomView {
  readonly name: string;
  readonly joined: boolean;
  readonly rows: readonly Row[];
  readonly people: number;
  readonly users: readonly User[];
  readonly typing: readonly User[];
  readonly unread: number;
  readonly more: boolean;
  readonly loading: boolean;
  readonly notice: string | null;
}

// A room keeps this many messages in memory; older ones are loaded again when they are looked at.
const MAX_MESSAGES = 2_000;
const MAX_MESSAGES_READING = 6_000;
// Messages of one person within this time are one group.
const GROUP_MS = 5 * 60_000;
const TYPING_MS = 6_000;
const MAX_USERS = 200;
// Rows that say that something is missing.
const MAX_HOLES = 50;

/** One room as this client knows it. Pure: takes events, gives views; sends nothing. */
export class Room {
  joined = false;
  position: Position | null = null;
  people = 0;
  unread = 0;
  more = false;
  loading = false;
  notice: string | null = null;
  /** Whether somebody reads old messages, so that none are taken away at the top. */
  reading = false;
  /** Whether the server sends this room's events to the present connection. */
  live = false;
  readonly pending = new Map<string, Pending>();
  /** Pending messages that are in the log, while their copies are on the way. */
  readonly stored = new Set<string>();
  /** The message that is on its way, and what sends it again; see `Sender`. */
  inFlight: string | null = null;
  timer: ReturnType<typeof setTimeout> | undefined = undefined;
  private head = 0;
  private seen = 0;
  private epoch = "";
  private messages: MessageEvent_[] = [];
  private readonly holes = new Set<number>();
  private users = new Map<string, User>();
  private typing = new Map<string, { user: User; until: number }>();
  private cached: RoomView | null = null;

  constructor(
    readonly name: string,
    private readonly me: () => User | null,
  ) {}

  /** Drops the view, so that the next one is made anew. */
  touch(): void {
    this.cached = null;
  }

  /** Older messages are those before this seq; 0 where nothing is known. */
  get firstSeq(): number {
    return this.messages[0]?.seq ?? (this.position === null ? 0 : this.position.seq + 1);
  }

  get size(): number {
    return this.messages.length;
  }

  /** Whether everything that was missing at the last `joined` has come. */
  get caughtUp(): boolean {
    return this.live && this.seen >= this.head;
  }

  /** Where the next join begins: behind what is here, or before what may have been sent already. */
  get resumeAt(): Position | null {
    if (this.position !== null) return this.position;
    const tried = [...this.pending.values()].filter((each) => each.after !== null);
    return tried.sort((a, b) => a.at - b.at)[0]?.after ?? null;
  }

  has(id: string): boolean {
    return this.messages.some((message) => message.id === id);
  }

  /** Whether all messages behind a place are here. */
  covers(place: Position): boolean {
    const first = this.messages[0];
    if (place.epoch !== this.epoch || this.position === null) return false;
    if (place.seq === this.position.seq) return true;
    const whole = first !== undefined && first.seq <= place.seq + 1;
    return whole && [...this.holes].every((hole) => hole <= place.seq);
  }

  onJoined(event: JoinedEvent): void {
    this.joined = this.live = true;
    this.people = event.people;
    this.notice = null;
    const start = event.seq - event.missing;
    this.head = event.seq;
    this.seen = start;
    if (event.truncated && this.messages.length > 0) this.cut(start);
    if (this.messages.length === 0) this.more = start > 0;
    this.epoch = event.epoch;
    if (event.missing === 0) this.position = { epoch: event.epoch, seq: event.seq };
    else if (event.truncated) this.position = null;
    this.touch();
  }

  /** Adds a message; false for one that is here already. */
  onMessage(event: MessageEvent_): boolean {
    this.seen = event.seq;
    if (event.user.id === this.me()?.id) this.settle(event.id);
    const last = this.messages[this.messages.length - 1];
    if (last !== undefined && event.seq <= last.seq) return false;
    this.position = { epoch: this.epoch, seq: event.seq };
    this.messages.push(event);
    this.typing.delete(event.user.id);
    const limit = this.reading ? MAX_MESSAGES_READING : MAX_MESSAGES;
    if (this.messages.length > limit * 1.1) {
      this.messages = this.messages.slice(-limit);
      this.more = true;
    }
    this.touch();
    return true;
  }

  onReset(epoch: string, seq: number, truncated: boolean): void {
    if (this.caughtUp) this.head = seq;
    this.seen = seq;
    this.epoch = epoch;
    this.position = { epoch, seq };
    if (truncated) this.cut(seq);
    this.touch();
  }

  /** Numbers of the last message before each hole that is shown, and of the first one behind it. */
  get newestHole(): { before: number; after: number } | null {
    const newest = Math.max(-1, ...this.holes);
    if (newest < 0) return null;
    const before = this.messages.findLast((message) => message.seq <= newest)?.seq;
    return before === undefined || before === newest ? null : { before, after: newest + 1 };
  }

  /** Puts older messages, oldest first, into the newest hole, as many as belong there. */
  fill(older: readonly MessageEvent_[]): void {
    const hole = this.newestHole;
    const fitting = older.filter((each) => hole !== null && each.seq > hole.before && each.seq < hole.after);
    const [first] = fitting;
    if (hole === null || first === undefined) return;
    const at = this.messages.findIndex((message) => message.seq >= hole.after);
    this.messages.splice(at < 0 ? this.messages.length : at, 0, ...fitting);
    this.holes.delete(hole.after - 1);
    if (first.seq > hole.before + 1) this.holes.add(first.seq - 1);
    this.touch();
  }

  /** There is a hole before the event behind `seq`: numbers of before cannot be told from those of after. */
  private cut(seq: number): void {
    const last = this.messages[this.messages.length - 1];
    if (last !== undefined && last.seq >= seq) {
      this.messages = [];
      this.holes.clear();
    }
    this.holes.add(seq);
    if (this.holes.size > MAX_HOLES) this.holes.delete(Math.min(...this.holes));
    if (this.messages.length === 0) this.more = seq > 0;
    for (const id of this.stored) this.settle(id); // their copies may lie in the hole
  }

  /** A pending message has its place; it is drawn as pending until its copy comes. */
  onAck(id: string, epoch: string, seq: number): void {
    if (!this.pending.has(id)) return;
    const passed = this.position !== null && (epoch !== this.epoch || seq <= this.position.seq);
    if (passed || this.has(id)) this.settle(id);
    else this.stored.add(id);
    this.touch();
  }

  private settle(id: string): void {
    this.pending.delete(id);
    this.stored.delete(id);
  }

  onPresence(joined: readonly User[], left: readonly User[], people: number): void {
    for (const user of joined) this.users.set(user.id, user);
    for (const user of left) this.users.delete(user.id);
    if (people > MAX_USERS) this.users.clear();
    this.people = people;
    this.touch();
  }

  onWho(users: readonly User[], offset: number, people: number): void {
    if (offset === 0) this.users = new Map();
    for (const user of users) this.users.set(user.id, user);
    this.people = people;
    this.touch();
  }

  onTyping(users: readonly User[], now: number): void {
    for (const user of users) {
      if (user.id !== this.me()?.id) this.typing.set(user.id, { user, until: now + TYPING_MS });
    }
    this.touch();
  }

  /** Forgets who has stopped writing; true where that changed the view. */
  expireTyping(now: number): boolean {
    const before = this.typing.size;
    for (const [id, entry] of this.typing) if (entry.until <= now) this.typing.delete(id);
    if (this.typing.size !== before) this.touch();
    return this.typing.size !== before;
  }

  /** Puts older messages, oldest first, before those that are here. */
  prepend(older: readonly MessageEvent_[], more: boolean): void {
    const first = this.firstSeq;
    const fresh = older.filter((message) => first === 0 || message.seq < first);
    this.messages = [...fresh, ...this.messages];
    this.more = more && fresh.length > 0;
    this.loading = false;
    this.touch();
  }

  setPending(pending: Pending): void {
    this.pending.set(pending.id, pending);
    this.touch();
  }

  view(): RoomView {
    this.cached ??= {
      name: this.name,
      joined: this.joined,
      rows: this.rows(),
      people: this.people,
      users: [...this.users.values()].sort((a, b) => a.name.localeCompare(b.name)),
      typing: [...this.typing.values()].map((entry) => entry.user),
      unread: this.unread,
      more: this.more,
      loading: this.loading,
      notice: this.notice,
    };
    return this.cached;
  }

  private rows(): Row[] {
    const rows: Row[] = [];
    const me = this.me();
    let last: { user: string; at: number } | null = null;
    let day = "";
    const startOfDay = (at: number): void => {
      const date = new Date(at).toDateString();
      if (date === day) return;
      day = date;
      last = null;
      rows.push({ kind: "day", key: `day-${date}`, at });
    };
    for (const message of this.messages) {
      if (this.holes.has(message.seq - 1)) {
        rows.push({ kind: "hole", key: `hole-${message.seq}` });
        last = null;
      }
      startOfDay(message.ts);
      const first: boolean =
        last === null || last.user !== message.user.id || message.ts - last.at > GROUP_MS;
      last = { user: message.user.id, at: message.ts };
      rows.push({
        kind: "message",
        key: message.id + message.seq,
        user: message.user,
        text: message.text,
        at: message.ts,
        first,
        own: message.user.id === me?.id,
        pending: null,
      });
    }
    if (me === null) return rows;
    for (const pending of this.pending.values()) {
      startOfDay(pending.at);
      const first: boolean = last === null || last.user !== me.id;
      last = { user: me.id, at: pending.at };
      const { id, text, at } = pending;
      rows.push({ kind: "message", key: id, user: me, text, at, first, own: true, pending });
    }
    return rows;
  }
}
