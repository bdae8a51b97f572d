import { useState } from "react";
import { useApp, useStore } from "../hooks";
import type { RoomView } from "../room";
import { Avatar } from "./Avatar";

/** Rooms joined, rooms active now, a way into any other, and who one is. */
export function Sidebar() {
  const app = useApp();
  const store = useStore();
  const joined = new Set(app.rooms.map((room) => room.name));
  const others = app.active.filter((room) => !joined.has(room.room));
  return (
    <nav className="sidebar" aria-label="Rooms">
      <header className="sidebar-head">
        <img src="/icon.svg" alt="" width="28" height="28" />
        <strong>tornadochat</strong>
      </header>
      <JoinForm />
      <div className="sidebar-lists">
        <h2>Your rooms</h2>
        {app.rooms.length === 0 && <p className="hint">None yet.</p>}
        <ul>
          {app.rooms.map((room) => (
            <RoomLink key={room.name} room={room} current={room.name === app.current} />
          ))}
        </ul>
        {others.length > 0 && (
          <>
            <h2>Active now</h2>
            <ul>
              {others.map((room) => (
                <li key={room.room}>
                  <button type="button" className="room-link" onClick={() => store.join(room.room)}>
                    <span className="room-name"># {room.room}</span>
                    <span className="count">
                      {room.people}
                      <span className="visually-hidden"> people</span>
                    </span>
                  </button>
                </li>
              ))}
            </ul>
          </>
        )}
      </div>
      {app.user !== null && (
        <footer className="me">
          <Avatar user={app.user} />
          <span className="me-name">{app.user.name}</span>
          <button type="button" className="quiet" onClick={() => void store.signOut()}>
            Sign out
          </button>
        </footer>
      )}
    </nav>
  );
}

function JoinForm() {
  const store = useStore();
  const [name, setName] = useState("");
  return (
    <form
      className="join"
      onSubmit={(event) => {
        event.preventDefault();
        store.join(name);
        setName("");
      }}
    >
      <label className="visually-hidden" htmlFor="join">
        Name of a room
      </label>
      <input
        id="join"
        placeholder="Join or open a room"
        maxLength={64}
        value={name}
        onChange={(event) => setName(event.target.value)}
      />
      <button type="submit" disabled={name.trim() === ""}>
        Join
      </button>
    </form>
  );
}

function RoomLink({ room, current }: { room: RoomView; current: boolean }) {
  const store = useStore();
  return (
    <li>
      <button
        type="button"
        className="room-link"
        aria-current={current ? "page" : undefined}
        onClick={() => store.select(room.name)}
      >
        <span className="room-name"># {room.name}</span>
        {room.unread > 0 && (
          <span className="unread">
            {room.unread > 99 ? "99+" : room.unread}
            <span className="visually-hidden"> unread</span>
          </span>
        )}
      </button>
      <button
        type="button"
        className="quiet leave"
        aria-label={`Leave ${room.name}`}
        title="Leave"
        onClick={() => store.leave(room.name)}
      >
        ×
      </button>
    </li>
  );
}
