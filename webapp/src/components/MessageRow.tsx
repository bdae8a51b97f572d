import { memo } from "react";
import { useStore } from "../hooks";
import type { Row } from "../room";
import { Avatar } from "./Avatar";

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });

/** One row of the list: a day, a hole, or a message. */
export const MessageRow = memo(function MessageRow({ row, room }: { row: Row; room: string }) {
  if (row.kind === "day") {
    return (
      <h3 className="day">
        <span>{DAY.format(row.at)}</span>
      </h3>
    );
  }
  if (row.kind === "hole") return <p className="hole">Some messages before this are missing here.</p>;
  const state = row.pending === null ? "" : row.pending.failed === null ? " is-pending" : " is-failed";
  return (
    <article className={`message${row.first ? " is-first" : ""}${row.own ? " is-own" : ""}${state}`}>
      {row.first ? <Avatar user={row.user} /> : <span className="avatar-gap" />}
      <div className="message-body">
        {row.first && (
          <p className="message-head">
            <strong>{row.user.name}</strong>
            <time dateTime={new Date(row.at).toISOString()}>{TIME.format(row.at)}</time>
          </p>
        )}
        <p className="message-text">{row.text}</p>
        {row.pending !== null && <PendingState room={room} id={row.pending.id} failed={row.pending.failed} />}
      </div>
    </article>
  );
});

function PendingState({ room, id, failed }: { room: string; id: string; failed: string | null }) {
  const store = useStore();
  if (failed === null) return <span className="visually-hidden">sending</span>;
  return (
    <p className="failed" role="alert">
      <span>{failed}</span>
      <button type="button" onClick={() => store.retry(room, id)}>
        Try again
      </button>
      <button type="button" onClick={() => store.discard(room, id)}>
        Discard
      </button>
    </p>
  );
}
