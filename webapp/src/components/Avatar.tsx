import type { User } from "../protocol";

const HUES = 12;

/** A person's initial on a colour that stays the same for the person. */
export function Avatar({ user }: { user: User }) {
  let hash = 0;
  for (const char of user.id) hash = (hash * 31 + (char.codePointAt(0) ?? 0)) >>> 0;
  return (
    <span className={`avatar hue-${hash % HUES}`} aria-hidden="true">
      {[...user.name][0]?.toUpperCase() ?? "?"}
    </span>
  );
}
