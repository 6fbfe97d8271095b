"""Prints the rates of llama-server on a model: what the example measure_lm of weir-lm prints of Weir's engine.

    python3 llama_server.py FOLDER MODEL.gguf THREADS [PARTS]

FOLDER has llama-server and its libraries; PARTS are what to measure, as `prefill 512,decode 4`, without them all. A line is the part, tokens per second of the time that passed, and tokens per second of the
time that all threads computed. Prompts are given as tokens, and answers are not streamed, so that little but the engine is measured.
"""

import concurrent.futures
import glob
import json
import os
import subprocess
import sys
import time
import urllib.request

PORT = 18947
STEPS = 48


def main(folder, model, threads, parts=""):
    command = [folder + "/llama-server", "-m", model, "-ngl", "0", "-t", threads, "-tb", threads, "-c", str(33 * 512), "-np", "32",
               "--port", str(PORT), "--host", "127.0.0.1", "--no-webui", "-b", "2048", "-ub", "512", "-kvu"]
    server = subprocess.Popen(command, env={**os.environ, "LD_LIBRARY_PATH": folder}, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    try:
        wait(server)
        measure(server.pid, [part for part in parts.split(",") if part])
    finally:
        server.terminate()
        server.wait()


def wait(server):
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health") as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if server.poll() is not None:
            raise SystemExit("llama-server has ended")
        time.sleep(0.1)
    raise SystemExit("llama-server does not answer")


def ask(tokens, count):
    body = {"prompt": tokens, "n_predict": count, "temperature": 0, "cache_prompt": False, "ignore_eos": True,
            "samplers": ["top_k"], "top_k": 1}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/completion", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["timings"]


def computed(pid):
    total = 0
    for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        try:
            total += int(open(path).read().split()[0])
        except OSError:
            pass
    return total / 1e9


def measure(pid, parts):
    prompt = [1000 + index * 37 % 20000 for index in range(2048)]
    for tokens in (128, 512, 2000):
        if parts and f"prefill {tokens}" not in parts:
            continue
        best = [1e9, 1e9]
        for turn in range(3):
            before = computed(pid)
            timings = ask([turn + 5] + prompt[1:tokens], 1)
            best = [min(best[0], timings["prompt_ms"] / 1e3), min(best[1], computed(pid) - before)]
        print(f"prefill {tokens} {tokens / best[0]:.1f} {tokens / best[1]:.1f}", flush=True)
    for count in (1, 4, 16, 32):
        if parts and f"decode {count}" not in parts:
            continue
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            # The prompts, and then the prompts with the tokens: the difference is the tokens.
            times = []
            for steps in (1, 1 + STEPS):
                before = (time.monotonic(), computed(pid))
                list(pool.map(lambda index: ask(prompt[index:index + 50], steps), range(count)))
                times.append((time.monotonic() - before[0], computed(pid) - before[1]))
        tokens = count * STEPS
        print(f"decode {count} {tokens / (times[1][0] - times[0][0]):.1f} {tokens / (times[1][1] - times[0][1]):.1f}", flush=True)
    memory = next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))
    print(f"memory {int(memory.split()[1]) / 1024:.0f}")


main(*sys.argv[1:])
