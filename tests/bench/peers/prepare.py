"""What the measurement needs from Python before it begins.

    prepare.py model SOURCE DESTINATION       a copy without links: ONNX Runtime refuses external data behind a link
    prepare.py count TOKENIZER_JSON           reads a JSON list of words, prints the token count of each as a JSON list
    prepare.py verify TOKENIZER_JSON FILE...  every line's `tokens` is what the tokenizer says of its `text`
"""

import json
import shutil
import sys
from pathlib import Path

from engine import TOKENS_MAX


def tokenizer(path):
    """The model's tokenizer, truncating as the servers do."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(path)
    found.no_padding()
    found.enable_truncation(TOKENS_MAX)
    return found


def main():
    """Reads the command line."""
    what, *rest = sys.argv[1:]
    if what == "model":
        shutil.rmtree(rest[1], ignore_errors=True)
        shutil.copytree(rest[0], rest[1], symlinks=False)
    elif what == "count":
        words = json.load(sys.stdin)
        encodings = tokenizer(rest[0]).encode_batch(words, add_special_tokens=False)
        json.dump([len(encoding.ids) for encoding in encodings], sys.stdout)
    elif what == "verify":
        known = tokenizer(rest[0])
        for path in rest[1:]:
            rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
            for row, encoding in zip(rows, known.encode_batch([row["text"] for row in rows])):
                if len(encoding.ids) != row["tokens"]:
                    raise SystemExit(f"{path}: {row} has {len(encoding.ids)} tokens")
            print(f"{path}: {len(rows)} texts")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
