import { readFileSync } from "node:fs";
import Ajv2020 from "ajv/dist/2020";
import { describe, expect, it } from "vitest";
import { newId, parseEvent } from "../src/protocol";

// The contract between server and client: read by pytest too.
const read = (path: string): unknown => JSON.parse(readFileSync(new URL(path, import.meta.url), "utf-8"));
const schema = read("../../tornadochat/schema.json") as { $defs: Record<string, unknown> };
const events = read("../../tests/samples/events.json") as {
  name: string;
  message: Record<string, unknown>;
}[];
const commands = read("../../tests/samples/commands.json") as {
  name: string;
  message: Record<string, unknown>;
}[];
const ajv = new Ajv2020({ strict: false });
ajv.addSchema(schema, "v1");

describe("the samples", () => {
  it.each(events)("$name is an event that this client knows", ({ message }) => {
    expect(parseEvent(JSON.stringify(message))).toEqual(message);
    expect(ajv.validate({ $ref: "v1#/$defs/event" }, message)).toBe(true);
  });

  it.each(commands)("$name is a command of the schema", ({ message }) => {
    expect(ajv.validate({ $ref: "v1#/$defs/command" }, message)).toBe(true);
  });

  it("cover every event of the schema", () => {
    const kinds = new Set(events.map(({ message }) => message.type));
    const { oneOf } = schema.$defs.event as { oneOf: { $ref: string }[] };
    expect(kinds.size).toBe(oneOf.length);
  });
});

describe("parseEvent", () => {
  it.each(["", "{", "null", "[]", "7", '{"type":"of a later version"}', '{"seq":1}'])(
    "ignores %j",
    (data) => {
      expect(parseEvent(data)).toBeNull();
    },
  );
});

it("new ids fit the schema and differ", () => {
  const ids = new Set(Array.from({ length: 500 }, newId));
  expect(ids.size).toBe(500);
  for (const id of ids) expect(ajv.validate({ $ref: "v1#/$defs/id" }, id)).toBe(true);
});
