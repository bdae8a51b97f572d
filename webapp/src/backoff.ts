/** Pauses between tries: exponential with full jitter, so that those who fell together do not return together. */

const FIRST_MS = 500;
const LAST_MS = 30_000;

/** Milliseconds before try number `attempt` (from 0): anything up to a limit that doubles each time. */
export function backoff(attempt: number, random: () => number = Math.random): number {
  return Math.round(random() * Math.min(LAST_MS, FIRST_MS * 2 ** Math.min(attempt, 16)));
}
