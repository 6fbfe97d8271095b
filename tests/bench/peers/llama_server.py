"""Prints the rates of llama-server on a model: what the example measure_lm of weir-lm prints of Weir's engine.

    python3 llama_server.py FOLDER MODEL.gguf THREADS [PARTS]

FOLDER has llama-server and its libraries; PARTS are the measurements, as in `prefill 512,decode 4`; all without them. A line has the part, tokens per second of
elapsed time, and tokens per second of the processor time of all threads. Prompts are sent as tokens, and responses are not streamed, so that little
other than the engine is measured.
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
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health") as response:
                if response.status == 200:
                    return
        except OSError:
            pass
        if server.poll() is not None:
            raise SystemExit("llama-server has ended")
        time.sleep(0.1)
    raise SystemExit("llama-server does not answer")


def complete(tokens, count):
    body = {"prompt": tokens, "n_predict": count, "temperature": 0, "cache_prompt": False, "ignore_eos": True,
            "samplers": ["top_k"], "top_k": 1}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/completion", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["timings"]


def processor_s(pid):
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
            before = processor_s(pid)
            timings = complete([turn + 5] + prompt[1:tokens], 1)
            best = [min(best[0], timings["prompt_ms"] / 1e3), min(best[1], processor_s(pid) - before)]
        print(f"prefill {tokens} {tokens / best[0]:.1f} {tokens / best[1]:.1f}", flush=True)
    for count in (1, 4, 16, 32):
        if parts and f"decode {count}" not in parts:
            continue
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            # First the prompts alone, then prompts and tokens: the difference is the time of the tokens.
            times = []
            for steps in (1, 1 + STEPS):
                before = (time.monotonic(), processor_s(pid))
                list(pool.map(lambda index: complete(prompt[index:index + 50], steps), range(count)))
                times.append((time.monotonic() - before[0], processor_s(pid) - before[1]))
        tokens = count * STEPS
        print(f"decode {count} {tokens / (times[1][0] - times[0][0]):.1f} {tokens / (times[1][1] - times[0][1]):.1f}", flush=True)
    memory = next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))
    print(f"memory {int(memory.split()[1]) / 1024:.0f}")


main(*sys.argv[1:])
