// What Artillery's engine for Socket.IO does not count by itself: deliveries, and how long each took from the stamp
// of its sender. Its own response_time is that of an emit that nobody answers: 0 ms.
const { hrtime, env } = require("node:process");

const USERS = Number(env.CHAT_USERS);
const ROOM = Number(env.CHAT_ROOM);
const MINUTES = Number(env.CHAT_MINUTES);
const ARRIVAL_SECONDS = Number(env.CHAT_ARRIVAL_SECONDS);
const SETTLE_SECONDS = Number(env.CHAT_SETTLE_SECONDS);
const TEXT_CHARS = Number(env.CHAT_TEXT_CHARS);
const MINUTE = 60_000;

let users = 0;
let start; // when the first message is said: everybody has had the time to join by then

// Milliseconds of a clock that all processes of the machine share.
const now = () => Number(hrtime.bigint() / 1000n) / 1000;
const until = (time, done) => setTimeout(done, Math.max(0, time - now()));

function enter(context, events, done) {
  start ??= now() + (ARRIVAL_SECONDS + SETTLE_SECONDS) * 1000;
  const number = users++;
  context.vars.room = `artillery-${number % Math.ceil(USERS / ROOM)}`;
  context.vars.turn = start + (number / USERS) * MINUTE;
  context.sockets[""].on("message", ({ text }) => {
    events.emit("counter", "chat.delivered", 1);
    events.emit("histogram", "chat.delay", now() - Number(/^@(\d+)/.exec(text)[1]) / 1000);
  });
  done();
}

function joined(context, events, done) {
  events.emit("counter", "chat.joined", 1);
  done();
}

function waitForTurn(context, events, done) {
  until(context.vars.turn, done);
  context.vars.turn += MINUTE;
}

function word(context, events, done) {
  context.vars.text = `@${Math.round(now() * 1000)} `.padEnd(TEXT_CHARS, "x");
  events.emit("counter", "chat.sent", 1);
  done();
}

function waitForEnd(context, events, done) {
  until(start + MINUTES * MINUTE + SETTLE_SECONDS * 1000, done);
}

module.exports = { enter, joined, waitForTurn, word, waitForEnd };
