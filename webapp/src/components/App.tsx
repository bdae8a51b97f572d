import { useEffect } from "react";
import { useApp, useStore } from "../hooks";
import { ConnectionBanner } from "./ConnectionBanner";
import { NamePicker } from "./NamePicker";
import { RoomPane } from "./RoomPane";
import { Sidebar } from "./Sidebar";

export function App() {
  const app = useApp();
  const store = useStore();
  const unread = app.rooms.reduce((sum, room) => sum + room.unread, 0);

  useEffect(() => {
    const name = app.current === null ? "tornadochat" : `${app.current} · tornadochat`;
    document.title = unread > 0 ? `(${unread}) ${name}` : name;
  }, [app.current, unread]);

  useEffect(() => {
    // Alt+Up and Alt+Down go through the rooms without the mouse.
    const onKey = (event: KeyboardEvent): void => {
      if (!event.altKey || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
      const names = store.app().rooms.map((room) => room.name);
      const at = names.indexOf(store.app().current ?? "");
      const next = names[(at + (event.key === "ArrowDown" ? 1 : names.length - 1)) % names.length];
      if (next !== undefined) store.select(next);
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [store]);

  if (app.phase === "starting") return <p className="starting">Connecting…</p>;
  if (app.phase === "sign-in") return <NamePicker problem={app.problem} />;
  return (
    <div className={app.current === null ? "chat chat-rooms" : "chat"}>
      <Sidebar />
      <main className="pane">
        <ConnectionBanner />
        {app.current === null ? <Nothing /> : <RoomPane key={app.current} name={app.current} />}
      </main>
    </div>
  );
}

function Nothing() {
  return (
    <div className="nothing">
      <h2>Join a room to begin</h2>
      <p>Type any name on the left, or choose a room that is active now.</p>
    </div>
  );
}
