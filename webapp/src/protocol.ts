/**
 * The messages of tornadochat.v1 as types. tests/samples holds one of each kind, schema.json in the
 * Python package rules both; a test holds these types' parser against them.
 */

export interface User {
  readonly id: string;
  readonly name: string;
}

/** A place in a room's log; seqs are compared within one epoch. */
export interface Position {
  readonly epoch: string;
  readonly seq: number;
}

export type Command =
  | { type: "join"; room: string; after?: Position; history?: number }
  | { type: "leave"; room: string }
  | { type: "send"; room: string; id: string; text: string }
  | { type: "typing"; room: string }
  | { type: "who"; room: string; offset?: number; limit?: number }
  | { type: "ping" };

export interface MessageEvent_ {
  type: "message";
  seq: number;
  room: string;
  id: string;
  user: User;
  text: string;
  ts: number;
}

export interface ErrorEvent_ {
  type: "error";
  code: string;
  message: string;
  room?: string;
  id?: string;
  retry_after_ms?: number;
}

export interface JoinedEvent {
  type: "joined";
  room: string;
  epoch: string;
  seq: number;
  truncated: boolean;
  missing: number;
  people: number;
}

export interface ResetEvent {
  type: "reset";
  room: string;
  epoch: string;
  seq: number;
  truncated: boolean;
}

export type ServerEvent =
  | { type: "welcome"; user: User; session: string; limits: Record<string, number> }
  | JoinedEvent
  | { type: "left"; room: string; reason: "left" | "removed" }
  | MessageEvent_
  | { type: "ack"; room: string; id: string; epoch: string; seq: number }
  | ResetEvent
  | { type: "gap"; room: string; epoch: string; seq: number }
  | { type: "presence"; room: string; joined: User[]; left: User[]; people: number }
  | { type: "typing"; room: string; users: User[] }
  | { type: "who"; room: string; offset: number; users: User[]; people: number }
  | { type: "status"; broker: "up" | "down" }
  | ErrorEvent_
  | { type: "pong" }
  | { type: "bye"; reason: string; retry_after_ms: number };

const EVENT_TYPES: ReadonlySet<string> = new Set<ServerEvent["type"]>([
  "welcome",
  "joined",
  "left",
  "message",
  "ack",
  "reset",
  "gap",
  "presence",
  "typing",
  "who",
  "status",
  "error",
  "pong",
  "bye",
]);

/** One text frame as an event; null for what this client does not know, which it ignores. */
export function parseEvent(data: string): ServerEvent | null {
  let found: unknown;
  try {
    found = JSON.parse(data);
  } catch {
    return null;
  }
  if (typeof found !== "object" || found === null || !("type" in found)) return null;
  return EVENT_TYPES.has(String(found.type)) ? (found as ServerEvent) : null;
}

/** An id for a message: 120 random bits, so that no two clients ever choose the same. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(15));
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_");
}
