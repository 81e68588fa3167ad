// node examples/chat.mjs ["What is the capital of France?"]
import process from "node:process";
import { streamChat } from "./chat_stream.mjs";

const url = process.env.MILLRACE_URL ?? "http://127.0.0.1:8080";
const content = process.argv[2] ?? "What is the capital of France?";
const options = { max_tokens: 20, temperature: 0 };
try {
  for await (const text of streamChat(url, [{ role: "user", content }], options)) {
    process.stdout.write(text);
  }
  process.stdout.write("\n");
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
