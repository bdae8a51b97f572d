import { useApp, useStore } from "../hooks";

/** Says when the connection is not as it should be, and offers what can be done. */
export function ConnectionBanner() {
  const app = useApp();
  const store = useStore();
  if (app.link === "open" && !app.storeDown) return null;
  const words =
    app.link === "open"
      ? "The server is catching its breath. What you send waits."
      : app.link === "connecting"
        ? "Connecting…"
        : "Disconnected. What you send waits until you are back.";
  return (
    <div className="banner" role="status">
      <span>{words}</span>
      {app.link === "waiting" && (
        <button type="button" onClick={store.retryNow}>
          Try now
        </button>
      )}
    </div>
  );
}
