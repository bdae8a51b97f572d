import type { MessageEvent_, User } from "./protocol";

export interface Session {
  user: User;
  token: string;
  expires: number;
}

export interface ActiveRoom {
  readonly room: string;
  readonly people: number;
}

export interface History {
  epoch: string;
  seq: number;
  more: boolean;
  messages: MessageEvent_[];
}

/** An answer that is an error, with the server's words for it. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly retryAfterMs: number,
  ) {
    super(message);
  }
}

async function call<T>(path: string, init?: RequestInit): Promise<T> {
  let answer: Response;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...init });
  } catch {
    throw new ApiError(0, "The server cannot be reached.", 0);
  }
  const body = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) {
    const retryAfter = Number(answer.headers.get("Retry-After") ?? 0) * 1000;
    throw new ApiError(answer.status, body?.message ?? answer.statusText, retryAfter || 0);
  }
  return body as T;
}

export function signIn(name: string): Promise<Session> {
  return call("/api/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ name }),
  });
}

export function signOut(): Promise<null> {
  return call("/api/session", { method: "DELETE" });
}

export function readSession(): Promise<Session> {
  return call("/api/session");
}

export async function activeRooms(): Promise<ActiveRoom[]> {
  return (await call<{ rooms: ActiveRoom[] }>("/api/rooms?limit=50")).rooms;
}

export function history(room: string, before: number, limit: number): Promise<History> {
  return call(`/api/rooms/${encodeURIComponent(room)}/messages?before=${before}&limit=${limit}`);
}

/** Whether a handshake would be let in just now. */
export async function askSession(): Promise<{ ok: boolean; unauthorized: boolean; retryAfterMs: number }> {
  try {
    await readSession();
    return { ok: true, unauthorized: false, retryAfterMs: 0 };
  } catch (error) {
    const known = error instanceof ApiError ? error : new ApiError(0, "", 0);
    return { ok: false, unauthorized: known.status === 401, retryAfterMs: known.retryAfterMs };
  }
}
