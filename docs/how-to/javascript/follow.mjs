// Follows the account's template events, each exactly once, however often it is stopped:
//   node follow.mjs SUBSCRIPTION FILE [TYPE-PREFIX]
// FILE gets one JSON line for each event. It is the result and the position in
// one: what was written is known, and is not written again.
import { open as openFile } from "node:fs/promises";
import { jetstream } from "@nats-io/jetstream";
import { ask, open } from "./bus.mjs";

const [name, path, prefix = ""] = process.argv.slice(2);
if (!path) {
  console.error("usage: node follow.mjs SUBSCRIPTION FILE [TYPE-PREFIX]");
  process.exit(2);
}
let stopping = false;
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => (stopping = true));

// The last whole line tells how far we are; half a line is a crash while writing.
const file = await openFile(path, "a+");
const text = await file.readFile("utf8");
const whole = text.slice(0, text.lastIndexOf("\n") + 1);
if (whole.length < text.length) await file.truncate(Buffer.byteLength(whole));
const lines = whole.split("\n").filter(Boolean);
let last = lines.length ? JSON.parse(lines.at(-1)).sequence : 0;

const { nc, account } = await open();
// Asking again for a subscription that is there changes nothing: its place in
// the stream is kept by the server.
const { stream, consumer, api_prefix: apiPrefix } = await ask(nc, `tombolo.subscribe.${account}`, { name, kinds: ["template"] });
const events = await jetstream(nc, { apiPrefix }).consumers.get(stream, consumer);
console.error(`following ${stream} as ${consumer} after ${last}`);

while (!stopping) {
  let m;
  try {
    m = await events.next({ expires: 1_000 });
  } catch (err) {
    if (nc.isClosed()) throw err; // the user was removed, for one
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    continue; // the server is away: the client reconnects by itself
  }
  if (!m) continue; // nothing new for now
  const type = m.headers?.get("ce-type") ?? "";
  // One that we have, but whose acknowledgement was lost, comes again.
  if (m.seq > last && type.startsWith(prefix)) {
    await file.appendFile(JSON.stringify({ sequence: m.seq, type, id: m.headers.get("ce-id"), data: m.json() }) + "\n");
    await file.datasync();
    last = m.seq;
  }
  try {
    await m.ackAck(); // and wait until the server knows
  } catch (err) {
    if (nc.isClosed()) throw err;
    // It is away. What it does not know of comes again, and we have it.
  }
}
await nc.drain();
await file.close();
