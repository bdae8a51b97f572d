import { createContext, useCallback, useContext, useSyncExternalStore } from "react";
import type { RoomView } from "./room";
import type { AppView, ChatStore } from "./store";

export const StoreContext = createContext<ChatStore | null>(null);

/** The store that the page was started with. */
export function useStore(): ChatStore {
  const store = useContext(StoreContext);
  if (store === null) throw new Error("There is no StoreContext around this component.");
  return store;
}

/** Re-renders when anything but the inside of a room changes. */
export function useApp(): AppView {
  const store = useStore();
  return useSyncExternalStore(store.subscribe, store.app);
}

/** Re-renders when this room's view changes, at most once for each animation frame. */
export function useRoom(name: string): RoomView | null {
  const store = useStore();
  const view = useCallback(() => store.room(name), [store, name]);
  return useSyncExternalStore(store.subscribe, view);
}
