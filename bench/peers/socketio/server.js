// A cluster of workers, the Redis adapter between them.
//
//     node server.js PORT STORE_SOCKET WORKERS
//
// Sticky sessions are needed for long polling alone, so there are none.
import cluster from "node:cluster";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { serve } from "./chat.js";

const [port, storeSocket, workers] = process.argv.slice(2);

async function work() {
  const publisher = createClient({ socket: { path: storeSocket } });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  serve(port, { adapter: createAdapter(publisher, subscriber) });
}

if (cluster.isPrimary) {
  for (let i = 0; i < Number(workers); i++) cluster.fork();
  cluster.on("listening", () => console.log("ready"));
} else {
  await work();
}
