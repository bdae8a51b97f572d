import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useLayoutEffect, useRef, useState } from "react";
import { useStore } from "../hooks";
import type { RoomView } from "../room";
import { MessageRow } from "./MessageRow";

const ROW_PX = 44;
// So near the end somebody follows the conversation; further up they read.
const NEAR_END_PX = 80;
const NEAR_START_PX = 200;

/** The messages of a room: only those in sight are in the page, however many there are. */
export function MessageList({ room }: { room: RoomView }) {
  const store = useStore();
  const scroller = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const lastTop = useRef(0);
  const [away, setAway] = useState(false);
  const { rows } = room;
  const firstKey = rows.find((row) => row.kind === "message")?.key;
  const before = useRef({ firstKey, count: rows.length });

  const virtualizer = useVirtualizer({
    count: rows.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => ROW_PX,
    getItemKey: (index) => rows[index]?.key ?? index,
    overscan: 8,
  });

  const last = rows[rows.length - 1];
  const ownPending = last?.kind === "message" && last.pending !== null ? last.key : null;

  useLayoutEffect(() => {
    // Whoever says something wants to see it, wherever they were reading.
    if (ownPending !== null) following.current = true;
  }, [ownPending]);

  useLayoutEffect(() => {
    const added = rows.length - before.current.count;
    const grewAtStart =
      before.current.firstKey !== undefined && firstKey !== before.current.firstKey && added > 0;
    before.current = { firstKey, count: rows.length };
    if (following.current && rows.length > 0) virtualizer.scrollToIndex(rows.length - 1, { align: "end" });
    // Older messages came in above: what was being read stays where it is.
    else if (grewAtStart && scroller.current !== null) scroller.current.scrollTop += added * ROW_PX;
  }, [rows, firstKey, virtualizer]);

  useEffect(() => () => store.setReading(room.name, false), [store, room.name]);

  const onScroll = (): void => {
    const box = scroller.current;
    if (box === null) return;
    // Only a way up ends the following: new rows alone put any distance between here and the end.
    if (box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PX) following.current = true;
    else if (box.scrollTop < lastTop.current - 1) following.current = false;
    lastTop.current = box.scrollTop;
    setAway(!following.current);
    store.setReading(room.name, !following.current);
    if (box.scrollTop < NEAR_START_PX && !following.current) void store.loadOlder(room.name);
  };

  const toEnd = (): void => {
    following.current = true;
    setAway(false);
    virtualizer.scrollToIndex(rows.length - 1, { align: "end" });
  };

  return (
    <div className="messages-frame">
      <div
        ref={scroller}
        className="messages"
        role="log"
        aria-label={`Messages in ${room.name}`}
        aria-live="polite"
        aria-relevant="additions"
        // biome-ignore lint/a11y/noNoninteractiveTabindex: a scrolling region must be reachable by keyboard
        tabIndex={0}
        onScroll={onScroll}
      >
        {room.more && (
          <button
            type="button"
            className="older quiet"
            disabled={room.loading}
            onClick={() => void store.loadOlder(room.name)}
          >
            {room.loading ? "Loading…" : "Show older messages"}
          </button>
        )}
        {rows.length === 0 && <p className="hint empty">Nothing has been said here yet.</p>}
        <div className="rows" style={{ height: virtualizer.getTotalSize() }}>
          {virtualizer.getVirtualItems().map((item) => {
            const row = rows[item.index];
            if (row === undefined) return null;
            return (
              <div
                key={item.key}
                ref={virtualizer.measureElement}
                data-index={item.index}
                className="row"
                style={{ transform: `translateY(${item.start}px)` }}
              >
                <MessageRow row={row} room={room.name} />
              </div>
            );
          })}
        </div>
      </div>
      {away && (
        <button type="button" className="to-end" onClick={toEnd}>
          Newest messages ↓
        </button>
      )}
    </div>
  );
}
