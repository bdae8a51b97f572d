import { useState } from "react";
import { useRoom, useStore } from "../hooks";
import type { User } from "../protocol";
import { Composer } from "./Composer";
import { MessageList } from "./MessageList";
import { People } from "./People";

/** One room: its messages, who is here, and the place to write. */
export function RoomPane({ name }: { name: string }) {
  const store = useStore();
  const room = useRoom(name);
  const [peopleShown, showPeople] = useState(false);
  if (room === null) return null;
  return (
    <section className="room" aria-label={`Room ${name}`}>
      <header className="room-head">
        <button
          type="button"
          className="quiet back"
          aria-label="All rooms"
          onClick={() => store.select(null)}
        >
          ‹
        </button>
        <h1># {name}</h1>
        <button
          type="button"
          className="quiet people-toggle"
          aria-expanded={peopleShown}
          aria-controls="people"
          onClick={() => showPeople(!peopleShown)}
        >
          {room.people === 1 ? "1 person" : `${room.people} people`}
        </button>
      </header>
      {room.notice !== null && (
        <p className="notice" role="alert">
          {room.notice}
        </p>
      )}
      <div className="room-body">
        <div className="room-main">
          <MessageList room={room} />
          <p className="typing" aria-live="off">
            {typingWords(room.typing)}
          </p>
          <Composer name={name} />
        </div>
        {peopleShown && <People room={room} />}
      </div>
    </section>
  );
}

function typingWords(users: readonly User[]): string {
  const [first, second] = users;
  if (first === undefined) return "";
  if (second === undefined) return `${first.name} is writing…`;
  if (users.length === 2) return `${first.name} and ${second.name} are writing…`;
  return `${users.length} people are writing…`;
}
