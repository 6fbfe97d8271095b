// Generates text at the server at argv[3] with the client named by argv[2] and prints what the client parsed, as JSON.
// The clients are unmodified.
const [, , name, base] = process.argv;
const model = "stub";
const messages = [{ role: "user", content: "hello" }];

const clients = {
  async openai() {
    const { default: OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "key", maxRetries: 0 });
    let text = "";
    let usage = null;
    const options = { model, messages, stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create(options)) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    let responses = "";
    for await (const event of await client.responses.create({ model, input: "hello", stream: true })) {
      if (event.type === "response.output_text.delta") responses += event.delta;
    }
    const whole = await client.chat.completions.create({ model, messages, max_tokens: 2 });
    const unknown = await client.chat.completions.create({ model: "nowhere", messages }).catch((error) => error);
    return {
      stream: text,
      usage: [usage.prompt_tokens, usage.completion_tokens],
      whole: [whole.choices[0].message.content, whole.choices[0].finish_reason],
      responses,
      unknown: [unknown.status, unknown.code],
    };
  },

  async anthropic() {
    const { default: Anthropic } = await import("@anthropic-ai/sdk");
    const client = new Anthropic({ baseURL: base, apiKey: "key", maxRetries: 0 });
    const stream = client.messages.stream({ model, max_tokens: 64, messages });
    let text = "";
    stream.on("text", (delta) => (text += delta));
    const last = await stream.finalMessage();
    return { stream: text, whole: last.content[0].text, stop: last.stop_reason };
  },

  async ai() {
    const { streamText, generateText } = await import("ai");
    const { createOpenAI } = await import("@ai-sdk/openai");
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    const openai = createOpenAI({ baseURL: `${base}/v1`, apiKey: "key" });
    const compatible = createOpenAICompatible({ name: "weir", baseURL: `${base}/v1`, includeUsage: true });
    const read = async (model) => {
      const result = streamText({ model, prompt: "hello", maxRetries: 0 });
      let text = "";
      for await (const delta of result.textStream) text += delta;
      const usage = await result.usage;
      return [text, await result.finishReason, usage.outputTokens];
    };
    const parts = [];
    const failing = streamText({ model: openai.chat(model), prompt: "!fail", maxRetries: 0, onError: () => {} });
    for await (const part of failing.fullStream) parts.push(part.type);
    return {
      responses: await read(openai(model)),
      chat: await read(openai.chat(model)),
      compatible: await read(compatible(model)),
      whole: (await generateText({ model: openai(model), prompt: "hello", maxRetries: 0 })).text,
      failed: parts.includes("error"),
    };
  },

  async ui() {
    const { DefaultChatTransport, readUIMessageStream } = await import("ai");
    const transport = new DefaultChatTransport({ api: `${base}/v1/ui/chat` });
    const message = { id: "1", role: "user", parts: [{ type: "text", text: "hello" }] };
    const stream = await transport.sendMessages({ chatId: "c", trigger: "submit-message", messages: [message] });
    let last = null;
    for await (const state of readUIMessageStream({ stream })) last = state;
    return { text: last.parts.filter((part) => part.type === "text").map((part) => part.text).join("") };
  },
};

console.log(JSON.stringify(await clients[name]()));
