// Connecting to Tombolo's bus: the only part that is not plain NATS is where the
// address and the key come from.
import { readFile } from "node:fs/promises";
import { connect, nkeyAuthenticator } from "@nats-io/transport-node";

// open reads a context file (TOMBOLO_CONTEXT) and connects as its user.
export async function open() {
  const path = process.env.TOMBOLO_CONTEXT;
  if (!path) throw new Error("set TOMBOLO_CONTEXT to a context file, such as the DIR/context.json that `tombolo up` writes");
  const context = JSON.parse(await readFile(path, "utf8"));
  const nc = await connect({
    servers: context.nats,
    authenticator: nkeyAuthenticator(new TextEncoder().encode(context.seed)),
    // Answers come to this user's own inbox; the bus lets nobody listen to others'.
    inboxPrefix: `_INBOX.${context.user}`,
    maxReconnectAttempts: -1,
  });
  return { nc, account: context.account };
}

// ask sends JSON and gives the JSON that answers it; a refusal is thrown.
export async function ask(nc, subject, body, options = {}) {
  const answer = (await nc.request(subject, JSON.stringify(body), { timeout: 10_000, ...options })).json();
  if (answer.error) throw new Refused(answer.error);
  return answer;
}

// Refused is a refusal: code is stable, next says what can be done about it.
export class Refused extends Error {
  constructor({ code, text, next }) {
    super([`${text} (${code})`, next].filter(Boolean).join(": "));
    this.code = code;
  }
}
