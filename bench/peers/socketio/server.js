// The smallest chat on Socket.IO: a cluster of workers, the Redis adapter between them, WebSocket only.
//
//     node server.js PORT STORE_SOCKET WORKERS
//
// Sticky sessions are needed for long polling alone, so there are none. `bufferutil` is what the page on
// performance tuning of Socket.IO recommends.
import cluster from "node:cluster";
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const [port, storeSocket, workers] = process.argv.slice(2);

async function work() {
  const publisher = createClient({ socket: { path: storeSocket } });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const http = createServer();
  const io = new Server(http, { transports: ["websocket"], adapter: createAdapter(publisher, subscriber) });
  io.on("connection", (socket) => {
    socket.on("join", (room, done) => {
      socket.join(room);
      done();
    });
    socket.on("send", ({ room, text }) => {
      io.to(room).emit("message", { room, text });
    });
  });
  http.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
}

if (cluster.isPrimary) {
  for (let i = 0; i < Number(workers); i++) cluster.fork();
  cluster.on("listening", () => console.log("ready"));
} else {
  await work();
}
