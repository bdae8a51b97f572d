// The smallest chat on Socket.IO, WebSocket only. `bufferutil` is what its page on performance tuning recommends.
import { createServer } from "node:http";
import { Server } from "socket.io";

export function serve(port, options = {}) {
  const http = createServer();
  const io = new Server(http, { transports: ["websocket"], ...options });
  io.on("connection", (socket) => {
    socket.on("join", (room, done) => {
      socket.join(room);
      done();
    });
    socket.on("send", ({ room, text }) => {
      io.to(room).emit("message", { room, text });
    });
  });
  return http.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
}
