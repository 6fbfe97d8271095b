"""Publishes the progress of a workflow and its completion, as a worker does.

    python3 publish.py WORKFLOW_ID [http://localhost:8080]

Python 3.8 or later, no packages. Follow it with `node ../javascript/follow.mjs workflow/WORKFLOW_ID`.
"""

import json
import sys
import time
import urllib.error
import urllib.request

workflow = sys.argv[1]
server = sys.argv[2] if len(sys.argv) > 2 else "http://localhost:8080"
RETRIES_MAX = 5
TIMEOUT_S = 30


def publish(event):
    """Publishes an event and returns its id. Retries after the time in `Retry-After`."""
    request = urllib.request.Request(
        f"{server}/stream/publish/workflow/{workflow}",
        json.dumps(event).encode(),
        {"content-type": "application/json"},
    )
    for attempt in range(RETRIES_MAX):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return json.load(response)["id"]
        except urllib.error.HTTPError as error:
            wait_s = error.headers.get("Retry-After")
            if error.code not in (429, 503) or wait_s is None or attempt + 1 == RETRIES_MAX:
                raise
            time.sleep(float(wait_s))


for percent in (0, 50, 100):
    print(publish({"step": "work", "progress": percent}))
print(publish({"event": "temporal_status", "status": "COMPLETED"}))
