// Saves an environment as a new template:
//   node create.mjs NAME ENVIRONMENT REGION [COMMAND-ID]
import { randomUUID } from "node:crypto";
import { errors, headers } from "@nats-io/transport-node";
import { ask, open } from "./bus.mjs";

const [name, environment, region, id = randomUUID()] = process.argv.slice(2);
if (!region) {
  console.error("usage: node create.mjs NAME ENVIRONMENT REGION [COMMAND-ID]");
  process.exit(2);
}
const { nc, account } = await open();
const h = headers();
h.set("tombolo-command-id", id);

// Sent again with the same id and body a command has one effect and one answer,
// so whatever happened to the first try, another one is safe.
for (let tries = 1; ; tries++) {
  try {
    const answer = await ask(nc, `tombolo.command.${account}.template.create`, { name, environment, region }, { headers: h });
    console.log(JSON.stringify(answer));
    break;
  } catch (err) {
    const forbidden = err.cause instanceof errors.PermissionViolationError;
    const passing = (err instanceof errors.TimeoutError || err instanceof errors.RequestError) && !forbidden || err.code === "outcome-unknown";
    if (!passing || tries === 5) {
      console.error(err.message);
      process.exitCode = 1;
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}
await nc.drain();
