/** What this browser remembers between two visits, besides the outbox: open rooms and drafts. */

const REMEMBERED = "tornadochat.rooms";
const DRAFT = "tornadochat.draft.";

export function rememberedRooms(): string[] {
  try {
    const found: unknown = JSON.parse(localStorage.getItem(REMEMBERED) ?? "[]");
    return Array.isArray(found) ? found.filter((name) => typeof name === "string") : [];
  } catch {
    return [];
  }
}

export function rememberRooms(names: readonly string[]): void {
  localStorage.setItem(REMEMBERED, JSON.stringify(names));
}

export function forgetRooms(): void {
  localStorage.removeItem(REMEMBERED);
}

export function draft(room: string): string {
  return sessionStorage.getItem(DRAFT + room) ?? "";
}

export function saveDraft(room: string, text: string): void {
  if (text === "") sessionStorage.removeItem(DRAFT + room);
  else sessionStorage.setItem(DRAFT + room, text);
}
