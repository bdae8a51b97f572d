import { useEffect, useRef, useState } from "react";
import { useStore } from "../hooks";

const MAX_CHARS = 4_000;

/** The place to write. Enter sends, Shift+Enter begins a new line; a draft stays with its room. */
export function Composer({ name }: { name: string }) {
  const store = useStore();
  const field = useRef<HTMLTextAreaElement>(null);
  const [text, setText] = useState(() => store.draft(name));

  useEffect(() => {
    if (matchMedia("(pointer: fine)").matches) field.current?.focus();
  }, []);

  const send = (): void => {
    if (store.say(name, text)) setText("");
  };

  return (
    <form
      className="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <label className="visually-hidden" htmlFor="text">
        Message to {name}
      </label>
      <textarea
        id="text"
        ref={field}
        rows={Math.min(6, text.split("\n").length)}
        placeholder={`Message #${name}`}
        maxLength={MAX_CHARS}
        value={text}
        onChange={(event) => {
          setText(event.target.value);
          store.saveDraft(name, event.target.value);
          if (event.target.value !== "") store.typing(name);
        }}
        onKeyDown={(event) => {
          if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
          event.preventDefault();
          send();
        }}
      />
      <button type="submit" className="primary" disabled={text.trim() === ""}>
        Send
      </button>
    </form>
  );
}
