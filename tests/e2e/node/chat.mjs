// Streams one chat from the protos alone and prints what came, as one line of JSON.
// Usage: node chat.mjs HOST:PORT FOLDER_OF_PROTOS MAX_TOKENS CONTENT

import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [address, protos, maxTokens, content] = process.argv.slice(2);
const definition = loadSync("millrace/v1/inference.proto", {
  includeDirs: [protos],
  keepCase: true,
  defaults: true,
  longs: String,
  enums: String,
  oneofs: true,
});
const { InferenceService } = loadPackageDefinition(definition).millrace.v1;
const client = new InferenceService(address, credentials.createInsecure());

const texts = [];
const events = [];
let finished = null;
const stream = client.Chat({
  messages: [{ role: "user", content }],
  options: { sampling: { max_tokens: Number(maxTokens), temperature: 0 } },
});
stream.on("data", (response) => {
  events.push(response.event);
  if (response.event === "delta") texts.push(response.delta.text);
  if (response.event === "finished") finished = response.finished;
});
stream.on("error", (error) => {
  console.error(`${error.code}: ${error.details}`);
  process.exitCode = 1;
});
stream.on("end", () => {
  client.close();
  console.log(JSON.stringify({ events, texts, finished }));
});
