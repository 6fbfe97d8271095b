"""Processes a document and prints an event for each step as it arrives.

    python3 process.py FILE [http://localhost:8080]

Python 3.8 or later, no packages.
"""

import json
import sys
import urllib.request

path = sys.argv[1]
server = sys.argv[2] if len(sys.argv) > 2 else "http://localhost:8080"

with open(path, encoding="utf-8") as file:
    body = json.dumps({"text": file.read().strip(), "include_entities": True}).encode()
request = urllib.request.Request(f"{server}/process-stream", body, {"content-type": "application/json"})
with urllib.request.urlopen(request) as response:
    for line in response:
        event = json.loads(line)
        status = event["status"]
        if status == "sentiment_progress":
            chunk = event["chunk_result"]
            print(f"{event['progress']:4.0%}  chunk {chunk['chunk']}: {chunk['sentiment']}")
        elif status == "summarization_complete":
            print("summary:", event["summary"])
        elif status == "entities_complete":
            print("entities:", ", ".join(sorted({entity["text"] for entity in event["entities"]})))
        else:
            print(status)
