"""Runs the cases of the Autobahn TestSuite, as the package kosoku has them, against a WebSocket peer.

    conformance.py server ADDRESS PARALLELISM CASE...   the peer at ADDRESS is a server that echoes messages
    conformance.py client PROGRAM ARGUMENT... -- CASE...  the peer is a client: the program is called with ADDRESS for `{}`

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
SUITE_TIMEOUT_S = 1500
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


async def test_client(command: list[str], cases: list[str]) -> list:
    async with kosoku.run_fuzzingserver(cases=cases or None, port=0) as server:
        address = f"{server.address}:{server.port}"
        client = await asyncio.create_subprocess_exec(*[part.replace("{}", address) for part in command])
        try:
            results = asyncio.ensure_future(server.get_result())
            if await client.wait() != 0:
                results.cancel()
                raise SystemExit(f"the client has ended with {client.returncode}")
            return await results
        except kosoku.FailureError as failure:
            return failure.results
        finally:
            if client.returncode is None:
                client.kill()


def main() -> int:
    accept_uncompressed_messages()
    role, *arguments = sys.argv[1:]
    if role == "server":
        address, parallelism, *cases = arguments
        run = test_server(address, int(parallelism), cases)
    elif role == "client":
        end = arguments.index("--")
        run = test_client(arguments[:end], arguments[end + 1 :])
    else:
        raise SystemExit(f"{role}: neither server nor client")
    return report(asyncio.run(asyncio.wait_for(run, SUITE_TIMEOUT_S)))


if __name__ == "__main__":
    sys.exit(main())
