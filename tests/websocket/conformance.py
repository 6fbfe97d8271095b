"""Runs the cases of the Autobahn TestSuite, as the package kosoku has them, against a WebSocket peer.

    conformance.py server ADDRESS PARALLELISM CASE...   the peer at ADDRESS is a server that echoes messages
    conformance.py client CASE...                       the peer is a client, which connects to the address in the first line of the output

A case is a name or a pattern such as `9.*`; without any, all 517 run. Each must be `OK` or, where the specification leaves the behaviour
open, `INFORMATIONAL`: `NON-STRICT` and `UNIMPLEMENTED` are failures here. The last line of the output is a JSON object with the counts.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys

import kosoku
import kosoku.cases

# The longest case has 1,000 messages of 128 KiB in fragments of 256 bytes.
SUITE_TIMEOUT_S = 7200
ACCEPTED = {"OK", "INFORMATIONAL"}


def accept_uncompressed_messages() -> None:
    """kosoku passes the messages that a peer did not compress (RFC 7692, section 6) to the cases 12 and 13 as `str`, one character for
    each byte of a binary message; the cases hash bytes. They would end with `Strings must be encoded before hashing`."""
    for case in kosoku.cases.CASES.values():
        if not case.__name__.startswith(("Case12_", "Case13_")):
            continue

        def on_message(self, message, binary, original=case.onMessage):
            if isinstance(message, str):
                message = message.encode("latin-1" if binary else "utf-8")
            return original(self, message, binary)

        case.onMessage = on_message


def report(results: list) -> int:
    """Prints the cases that are not accepted, and the counts."""
    counts = collections.Counter()
    failed = []
    for result in results:
        behavior, close = result.behavior.value, result.behavior_close.value
        counts[behavior] += 1
        if behavior not in ACCEPTED or close not in ACCEPTED:
            failed.append(result.case_id)
            print(f"{result.case_id}: {behavior}, close {close}: {result.result} {result.result_close}")
    print(json.dumps({"cases": len(results), "behaviors": counts, "failed": failed}))
    return 1 if failed or not results else 0


async def test_server(address: str, parallelism: int, cases: list[str]) -> list:
    try:
        return await kosoku.run_fuzzingclient(address, cases=cases or None, concurrency=parallelism)
    except kosoku.FailureError as failure:
        return failure.results


async def test_client(cases: list[str]) -> list:
    async with kosoku.run_fuzzingserver(cases=cases or None, port=0) as server:
        print(f"listening on {server.address}:{server.port}", flush=True)
        try:
            return await server.get_result()
        except kosoku.FailureError as failure:
            return failure.results


def main() -> int:
    accept_uncompressed_messages()
    role, *arguments = sys.argv[1:]
    if role == "server":
        address, parallelism, *cases = arguments
        run = test_server(address, int(parallelism), cases)
    elif role == "client":
        run = test_client(arguments)
    else:
        raise SystemExit(f"{role}: neither server nor client")
    return report(asyncio.run(asyncio.wait_for(run, SUITE_TIMEOUT_S)))


if __name__ == "__main__":
    sys.exit(main())
