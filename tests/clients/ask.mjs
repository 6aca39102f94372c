// OpenAI's client for Node against the server at argv[2]; what it saw, as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none" });
const asked = { model: "nightschool", messages: [{ role: "user", content: "Say hello." }], temperature: 0, max_tokens: 12 };
const saw = {};

const whole = await client.chat.completions.create(asked);
saw.whole = whole.choices[0].message.content;
saw.streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  saw.streamed += chunk.choices[0]?.delta?.content ?? "";
}
saw.text = (await client.completions.create({ model: "nightschool", prompt: "Say hello.", temperature: 0, max_tokens: 12 })).choices[0].text;
saw.models = [];
for await (const model of client.models.list()) saw.models.push(model.id);

async function refused(change) {
  try {
    await client.chat.completions.create({ ...asked, ...change });
    return null;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}
saw.long = await refused({ messages: [{ role: "user", content: "word ".repeat(20000) }] });
saw.unknown = await refused({ model: "gpt-4" });
saw.wrong = await refused({ temperature: "hot" });

// A body of undeclared length, as Node's fetch sends a stream.
const body = new Blob([JSON.stringify(asked)]).stream();
const chunked = await fetch(`${process.argv[2]}/v1/chat/completions`, {
  method: "POST", body, duplex: "half", headers: { "Content-Type": "application/json" },
});
saw.chunked = (await chunked.json()).choices[0].message.content;

// A reply that takes longer than this client waits for: it asks again, and is answered in the end.
const hasty = client.withOptions({ timeout: 1500, maxRetries: 8 });
const slow = { ...asked, max_tokens: 300, logit_bias: { 0: -100, 2: -100 } };
saw.retried = (await hasty.chat.completions.create(slow)).id;

const aborted = await client.chat.completions.create({ ...slow, max_tokens: 1900, stream: true });
for await (const chunk of aborted) if (chunk.choices[0]?.delta?.content) break;
console.log(JSON.stringify(saw));
