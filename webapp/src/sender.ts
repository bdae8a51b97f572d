import type { Outbox, Pending } from "./outbox";
import type { Command, ErrorEvent_, User } from "./protocol";
import { newId } from "./protocol";
import type { Room } from "./room";

export interface SenderPorts {
  /** Sends a command if there is a connection; returns whether it did. */
  send: (command: Command) => boolean;
  /** Called when a view has changed outside an event. */
  changed: () => void;
}

// The server knows a repeated id for ten minutes after the first try (docs/protocol.md); a minute is left
// for the way. Older ones are sent again only behind an unbroken replay.
const REPEAT_WINDOW_MS = 9 * 60_000;
// A confirmation comes within the server's 5 s or the connection is lost; then it is asked for again.
const CONFIRM_MS = 20_000;
// Messages of one room that wait; whoever has typed so many has to be told.
const MAX_PENDING = 200;
const UNKNOWN = "It is not known whether this has arrived. Look above before you send it again.";
const FULL = `${MAX_PENDING} messages wait already. Wait until some of them are sent.`;

/**
 * Sends each message once (docs/protocol.md, "Sending once"). One message of a room is on its way at a
 * time, so that they arrive in the order in which they were said, whatever fails in between.
 */
export class Sender {
  /** Where unconfirmed messages are kept; null until it has opened. */
  outbox: Outbox | null = null;
  private lastAt = 0;

  constructor(private readonly ports: SenderPorts) {}

  /** Says something; false where it has to wait for others. */
  say(room: Room, user: User, text: string): boolean {
    if (room.pending.size >= MAX_PENDING) {
      room.notice = FULL;
      room.touch();
      return false;
    }
    this.lastAt = Math.max(Date.now(), this.lastAt + 1);
    const fresh = { triedAt: null, after: null, failed: null };
    this.keep(room, { id: newId(), user: user.id, room: room.name, text, at: this.lastAt, ...fresh });
    this.advance(room);
    return true;
  }

  /** Sends a failed message again, under the same id; the person wants it, whatever became of it before. */
  retry(room: Room, id: string): void {
    const pending = room.pending.get(id);
    if (pending === undefined) return;
    this.keep(room, { ...pending, failed: null, triedAt: null, after: null });
    this.advance(room);
  }

  discard(room: Room, id: string): void {
    room.pending.delete(id);
    room.touch();
    this.outbox?.remove(id);
    this.settle(room, id);
  }

  /** Takes on what a page that is gone has left. */
  adopt(room: Room, messages: readonly Pending[]): void {
    for (const message of messages) {
      if (room.pending.has(message.id)) continue;
      if (room.has(message.id)) this.outbox?.remove(message.id);
      else if (!room.joined || this.isSafe(room, message)) room.setPending(message);
      else this.keep(room, { ...message, failed: UNKNOWN });
    }
    room.touch();
    this.advance(room);
  }

  private isSafe(room: Room, message: Pending): boolean {
    return isYoung(message) || (message.after !== null && room.covers(message.after));
  }

  /** Somebody else has signed in on this page: what may have arrived under the former name is not sent again. */
  reown(room: Room, user: User): void {
    for (const pending of [...room.pending.values()].filter((each) => each.user !== user.id)) {
      this.keep(room, { ...pending, user: user.id, failed: pending.triedAt === null ? null : UNKNOWN });
    }
  }

  /** A message is in the log: its own copy, or an acknowledgement. What waits behind it may `advance`. */
  confirm(room: Room, id: string): void {
    if (!room.pending.has(id)) return;
    this.outbox?.remove(id);
    if (room.inFlight === id) this.release(room);
  }

  /** Takes the answer to a send that was refused; false where the error is of something else. */
  refused(room: Room, event: ErrorEvent_): boolean {
    const pending = event.id === undefined ? undefined : room.pending.get(event.id);
    if (pending === undefined) return false;
    if (event.retry_after_ms !== undefined) {
      this.holdFor(room, pending.id, event.retry_after_ms);
    } else if (event.code === "not_joined") {
      this.pause(room); // it is sent again behind `joined`
    } else {
      this.keep(room, { ...pending, failed: `Not sent: ${event.message}` });
      this.settle(room, pending.id);
    }
    return true;
  }

  /** There is a hole in the replay, and the server may have forgotten the ids of old messages. */
  askAboutOld(room: Room): void {
    for (const pending of room.pending.values()) {
      if (!isYoung(pending) && pending.failed === null) this.keep(room, { ...pending, failed: UNKNOWN });
    }
  }

  /** The room is silent until it is joined again. */
  pause(room: Room): void {
    room.live = false;
    this.release(room);
  }

  /** Sends the oldest message that waits, once everything that was missing has come. */
  advance(room: Room): void {
    if (room.inFlight !== null || !room.caughtUp) return;
    const next = [...room.pending.values()].find((each) => each.failed === null && !room.stored.has(each.id));
    if (next === undefined) return;
    room.inFlight = next.id;
    const first = next.triedAt === null;
    const sent = first ? { ...next, triedAt: Date.now(), after: room.position } : next;
    const saved = first ? this.keep(room, sent) : null;
    if (saved === null) this.transmit(room, sent);
    else void saved.then(() => this.transmit(room, sent));
  }

  private transmit(room: Room, pending: Pending): void {
    if (room.inFlight !== pending.id) return;
    const { id, text } = pending;
    if (!room.caughtUp || !this.ports.send({ type: "send", room: room.name, id, text })) {
      room.inFlight = null; // `joined` goes on
      return;
    }
    this.holdFor(room, id, CONFIRM_MS);
  }

  /** Nothing more goes out in this room until the message is settled, or is sent again after a time. */
  private holdFor(room: Room, id: string, milliseconds: number): void {
    clearTimeout(room.timer);
    room.inFlight = id;
    room.timer = setTimeout(() => {
      this.release(room);
      this.advance(room);
      this.ports.changed();
    }, milliseconds);
  }

  private settle(room: Room, id: string): void {
    if (room.inFlight !== id) return;
    this.release(room);
    this.advance(room);
  }

  private release(room: Room): void {
    clearTimeout(room.timer);
    room.inFlight = null;
  }

  private keep(room: Room, pending: Pending): Promise<void> | null {
    room.setPending(pending);
    return this.outbox?.put(pending) ?? null;
  }
}

function isYoung(message: Pending): boolean {
  return message.triedAt === null || Date.now() - message.triedAt < REPEAT_WINDOW_MS;
}
