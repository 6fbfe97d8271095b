// The request of the try-it form as code in several languages.
import type { Task } from "./home";

export const LANGUAGES = ["curl", "Python", "JavaScript"] as const;
export type Language = (typeof LANGUAGES)[number];

function call(task: Task, text: string, model: string): [string, Record<string, unknown>] {
  const given = model === "" ? {} : { model };
  switch (task) {
    case "sentiment":
      return ["/v1/classify", { inputs: text, ...given }];
    case "entities":
      return ["/v1/tokens", { inputs: text, parameters: { aggregation_strategy: "simple" }, ...given }];
    case "generate":
      return ["/generate-stream", { messages: [{ role: "user", content: text }], ...given }];
    default:
      return ["/process-stream", { text, include_sentiment: task === "everything", include_summary: true, include_entities: task === "everything" }];
  }
}

export function codeFor(language: Language, task: Task, text: string, model: string): string {
  const [path, body] = call(task, text, model);
  const url = `${location.origin}${path}`;
  const json = JSON.stringify(body);
  switch (language) {
    case "curl":
      return `curl -N ${url} -H 'content-type: application/json' \\\n  -d '${json.replaceAll("'", "'\\''")}'`;
    case "Python":
      return `import json, urllib.request

body = json.dumps(json.loads(${JSON.stringify(json)})).encode()
request = urllib.request.Request("${url}", body, {"content-type": "application/json"})
with urllib.request.urlopen(request) as response:
    for line in response:
        print(line.decode(), end="")`;
    default:
      return `const response = await fetch("${url}", {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(${json}),
});
for await (const part of response.body.pipeThrough(new TextDecoderStream())) console.log(part);`;
  }
}
