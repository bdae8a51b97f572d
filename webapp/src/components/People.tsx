import type { RoomView } from "../room";
import { Avatar } from "./Avatar";

/** Who is here; in large rooms the first of them. */
export function People({ room }: { room: RoomView }) {
  const rest = room.people - room.users.length;
  return (
    <aside id="people" className="people" aria-label="Who is here">
      <h2>Who is here</h2>
      <ul>
        {room.users.map((user) => (
          <li key={user.id}>
            <Avatar user={user} />
            <span>{user.name}</span>
          </li>
        ))}
      </ul>
      {rest > 0 && <p className="hint">and {rest} more</p>}
    </aside>
  );
}
