"""The shipped sentiment model by real transformers, with torch, and by this package: equal labels and scores in every form of a call.

WEIR_TEST_TRANSFORMERS names an interpreter that has both, such as the one that `cargo xtask bench` installs. It is skipped without:
torch has 3 GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import unittest
from pathlib import Path
from typing import Any, Dict, List, Tuple

from weir_stream import pipeline
from weir_stream._models import models_dir

PYTHON = os.environ.get("WEIR_TEST_TRANSFORMERS")
ROOT = Path(__file__).resolve().parents[3]
TEXTS = [
    "What a wonderful evening!",
    "The tea was cold and nobody said sorry.",
    "The train leaves at nine.",
    "Grüße aus Zürich 😀",
    "x",
    "word " * 400,
]
#: A call: the input and the arguments.
CALLS: List[Tuple[Any, Dict[str, Any]]] = [
    (TEXTS[0], {}),
    (TEXTS[:3], {}),
    (TEXTS[0], {"top_k": None}),
    (TEXTS, {"top_k": None}),
    (TEXTS, {"top_k": 2}),
    (TEXTS[1], {"top_k": 1}),
    (TEXTS, {"function_to_apply": "sigmoid", "top_k": None}),
    (TEXTS, {"function_to_apply": "none", "top_k": None}),
    ("word " * 5000, {"truncation": True, "max_length": 512}),
    ({"text": "It rained.", "text_pair": "The sun shone."}, {"top_k": None}),
]
REFERENCE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, torch_model, transformers
model, tokenizer = torch_model.load(sys.argv[2])
pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
with torch.inference_mode():
    answers = [pipe(given, **arguments) for given, arguments in json.load(sys.stdin)]
print(json.dumps(answers))
"""


@unittest.skipUnless(PYTHON, "WEIR_TEST_TRANSFORMERS is not set")
class Transformers(unittest.TestCase):
    def same(self, got: Any, expected: Any) -> None:
        if isinstance(expected, float):
            self.assertAlmostEqual(got, expected, delta=1e-4)
        elif isinstance(expected, list):
            self.assertEqual(len(got), len(expected))
            for one, other in zip(got, expected):
                self.same(one, other)
        elif isinstance(expected, dict):
            self.assertEqual(list(got), list(expected))
            for key in expected:
                self.same(got[key], expected[key])
        else:
            self.assertEqual(got, expected)

    def test_each_form_of_a_call_is_answered_as_transformers_does(self) -> None:
        assert PYTHON is not None
        # Of the wheel: onnx follows no symbolic links, which the folder of the sources has.
        peers, model = ROOT / "tests" / "bench" / "peers", models_dir()
        assert model is not None
        model = model / "sentiment"
        command = [PYTHON, "-c", REFERENCE, str(peers), str(model)]
        done = subprocess.run(command, input=json.dumps(CALLS), capture_output=True, text=True, timeout=240)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        answers = json.loads(done.stdout.splitlines()[-1])
        pipe = pipeline("text-classification", model, precision="f32")
        for (given, arguments), expected in zip(CALLS, answers):
            with self.subTest(given=str(given)[:40], arguments=arguments):
                self.same(pipe(given, **arguments), expected)


if __name__ == "__main__":
    unittest.main()
