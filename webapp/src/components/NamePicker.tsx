import { useState } from "react";
import { useStore } from "../hooks";

/** Asks for a name; whoever has one comes in as a guest. */
export function NamePicker({ problem }: { problem: string | null }) {
  const store = useStore();
  const [name, setName] = useState("");
  const [busy, setBusy] = useState(false);

  const submit = async (): Promise<void> => {
    setBusy(true);
    await store.signIn(name);
    setBusy(false);
  };

  return (
    <main className="sign-in">
      <form
        className="card"
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <img src="/icon.svg" alt="" width="56" height="56" />
        <h1>tornadochat</h1>
        <label htmlFor="name">What shall others call you?</label>
        <input
          id="name"
          // biome-ignore lint/a11y/noAutofocus: it is the only field of the page
          autoFocus
          autoComplete="nickname"
          maxLength={40}
          value={name}
          aria-describedby={problem === null ? undefined : "problem"}
          onChange={(event) => setName(event.target.value)}
        />
        {problem !== null && (
          <p id="problem" className="problem" role="alert">
            {problem}
          </p>
        )}
        <button type="submit" className="primary" disabled={busy || name.trim() === ""}>
          Come in
        </button>
      </form>
    </main>
  );
}
