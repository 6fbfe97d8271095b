#!/usr/bin/env python3
"""A stand-in for `spin up`, for machines without Spin: starts `wasmtime serve` from a Spin manifest.

It shows that the manifest and the test of `cargo xtask hosts spin` are complete, and nothing about Spin itself. It needs Python 3.11 and
wasmtime, WEIR_TEST_WASMTIME or the one on the PATH:

    cargo xtask hosts spin --bin tests/hosts/spin_stand_in.py
"""

import argparse
import os
import pathlib
import sys
import tomllib


def arguments():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=["up"])
    parser.add_argument("--from", dest="manifest", type=pathlib.Path, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    for name in ["--max-instance-reuse-count", "--max-instance-concurrent-reuse-count", "--idle-instance-timeout"]:
        parser.add_argument(name, required=True)
    return parser.parse_args()


def main():
    given = arguments()
    with given.manifest.open("rb") as file:
        manifest = tomllib.load(file)
    (trigger,) = manifest["trigger"]["http"]
    if trigger["route"] != "/...":
        raise SystemExit(f"the route {trigger['route']} is not /...")
    component = manifest["component"][trigger["component"]]
    folder = given.manifest.parent
    command = [os.environ.get("WEIR_TEST_WASMTIME", "wasmtime"), "serve", "-Sp3,cli", "-Wcomponent-model-async"]
    command += ["--addr", given.listen]
    command += [f"--max-instance-reuse-count={given.max_instance_reuse_count}"]
    command += [f"--max-instance-concurrent-reuse-count={given.max_instance_concurrent_reuse_count}"]
    command += [f"--idle-instance-timeout={given.idle_instance_timeout}"]
    for files in component.get("files", []):
        source = folder / files["source"]
        if any(path.is_symlink() for path in source.rglob("*")):
            raise SystemExit(f"{source} has links, which Spin does not follow")
        command += ["--dir", f"{source}::{files['destination']}"]
    for name, value in component.get("environment", {}).items():
        command += ["--env", f"{name}={value}"]
    for pair in given.env:
        command += ["--env", pair]
    command.append(str(folder / component["source"]))
    announce(given.listen)
    os.execvp(command[0], command)


def announce(address):
    """Connects the standard error of this process to another one, which writes Spin's line when wasmtime listens."""
    output, log = os.pipe()
    if os.fork() == 0:
        os.close(log)
        with os.fdopen(output) as lines:
            for line in lines:
                sys.stderr.write(line)
                if line.startswith("Serving HTTP on "):
                    print(f"Serving http://{address}", flush=True)
        os._exit(0)
    os.close(output)
    os.dup2(log, sys.stderr.fileno())
    os.close(log)


main()
