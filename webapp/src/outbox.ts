import type { DBSchema, IDBPDatabase } from "idb";
import { openDB } from "idb";
import type { Position } from "./protocol";

/** A message that the server has not confirmed yet. */
export interface Pending {
  readonly id: string;
  /** User id of the sender; under another one the same message id is another message. */
  readonly user: string;
  readonly room: string;
  readonly text: string;
  /** When it was said; later messages of one page have later times. */
  readonly at: number;
  /** When it was sent first, and the place in the room that was known before. */
  readonly triedAt: number | null;
  readonly after: Position | null;
  /** Why it is not sent by itself any more. */
  readonly failed: string | null;
}

interface Entry extends Pending {
  readonly owner: string;
}

interface Schema extends DBSchema {
  messages: { key: string; value: Entry; indexes: { user: string } };
}

/** Web Locks as far as they are used here; null on pages that have none (plain HTTP from elsewhere). */
export type Locks = Pick<LockManager, "request"> | null;

const NAME = "tornadochat";
const VERSION = 1;
// A database that does not open or write in this time is done without: nobody waits to talk for it.
const PATIENCE_MS = 2_000;
// A page that was just left gives its lock back within this time; later ones are adopted when they do.
const ADOPTION_MS = 300;
// What nobody came back for is forgotten: above this age, and above this number.
const MAX_AGE_MS = 30 * 86_400_000;
const MAX_ENTRIES = 2_000;

/**
 * Unconfirmed messages of this browser, in IndexedDB: a reload, a crash or a night offline loses none.
 *
 * Each page owns what was said in it and holds a Web Lock for as long as it lives. When it is gone,
 * another page of the same user gets the lock and adopts what it left; so no two pages send the same
 * message. Without Web Locks a page takes everything over at once; the server knows repeats by their id.
 * Without IndexedDB messages live as long as the page.
 */
export class Outbox {
  private readonly owner = crypto.getRandomValues(new Uint32Array(4)).join("-");
  private readonly watched = new Map<string, Promise<void>>();
  private readonly closing = new AbortController();

  private constructor(
    private readonly db: IDBPDatabase<Schema> | null,
    private readonly locks: Locks,
    private readonly onAdopted: (messages: Pending[]) => void,
  ) {}

  /** Opens the database; an outbox without one where that fails. */
  static async open(
    onAdopted: (messages: Pending[]) => void,
    locks: Locks = navigator.locks ?? null,
  ): Promise<Outbox> {
    const db = await within(PATIENCE_MS, openDatabase()).catch(() => null);
    const outbox = new Outbox(db, locks, onAdopted);
    if (db !== null) await within(PATIENCE_MS, outbox.trim(db)).catch(() => null);
    outbox.hold();
    return outbox;
  }

  /** Writes a message down; null where there is nothing to wait for. */
  put(message: Pending): Promise<void> | null {
    if (this.db === null) return null;
    const writing = this.db.put("messages", { ...message, owner: this.owner });
    return within(PATIENCE_MS, writing).then(ignore, ignore); // it is sent all the same
  }

  /** Forgets a message that was confirmed or given up. */
  remove(id: string): void {
    this.db?.delete("messages", id).catch(ignore);
  }

  /** Forgets everything of a user who signs out. */
  async forget(user: string): Promise<void> {
    if (this.db === null) return;
    const ids = await this.db.getAllKeysFromIndex("messages", "user", user);
    await Promise.all(ids.map((id) => this.db?.delete("messages", id)));
  }

  /** Takes over what pages that are gone have left of a user; `onAdopted` gets it, now or when they go. */
  async adopt(user: string): Promise<void> {
    if (this.db === null) return;
    try {
      const entries = await within(PATIENCE_MS, this.db.getAllFromIndex("messages", "user", user));
      const owners = new Set(entries.map((entry) => entry.owner).filter((owner) => owner !== this.owner));
      for (const owner of owners) {
        if (!this.watched.has(owner)) this.watched.set(owner, this.inherit(user, owner));
      }
      await Promise.race([Promise.all(this.watched.values()), pause(ADOPTION_MS)]);
    } catch {
      // A database that fails now is asked again the next time.
    }
  }

  /** Gives up the lock: other pages adopt what is left here. */
  close(): void {
    this.closing.abort();
    this.db?.close();
  }

  private hold(): void {
    void this.locks?.request(lockOf(this.owner), () => {
      return new Promise<void>((release) => this.closing.signal.addEventListener("abort", () => release()));
    });
  }

  private async inherit(user: string, owner: string): Promise<void> {
    const take = async (): Promise<void> => {
      const found = await this.take(user, owner);
      if (found.length > 0) this.onAdopted(found);
    };
    try {
      if (this.locks === null) await take();
      else await this.locks.request(lockOf(owner), { signal: this.closing.signal }, take);
    } catch {
      // The page is closing, or the database failed.
    } finally {
      this.watched.delete(owner);
    }
  }

  private async take(user: string, owner: string): Promise<Pending[]> {
    if (this.db === null) return [];
    const transaction = this.db.transaction("messages", "readwrite");
    const entries = await transaction.store.index("user").getAll(user);
    const found = entries.filter((entry) => entry.owner === owner).sort((a, b) => a.at - b.at);
    for (const entry of found) await transaction.store.put({ ...entry, owner: this.owner });
    await transaction.done;
    return found.map(({ owner: _owner, ...message }) => message);
  }

  private async trim(db: IDBPDatabase<Schema>): Promise<void> {
    const entries = (await db.getAll("messages")).sort((a, b) => b.at - a.at);
    const oldest = Date.now() - MAX_AGE_MS;
    const old = entries.filter((entry, index) => index >= MAX_ENTRIES || entry.at < oldest);
    for (const entry of old) await db.delete("messages", entry.id);
  }
}

async function openDatabase(): Promise<IDBPDatabase<Schema>> {
  return openDB<Schema>(NAME, VERSION, {
    upgrade(db) {
      db.createObjectStore("messages", { keyPath: "id" }).createIndex("user", "user");
    },
    blocking(_current, _blocked, event) {
      // A newer version of this page wants to change the database.
      (event.target as IDBDatabase).close();
    },
  });
}

function lockOf(owner: string): string {
  return `tornadochat.outbox.${owner}`;
}

function ignore(): void {}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

async function within<T>(milliseconds: number, work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error("the database does not answer")), milliseconds);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
