"""The examples of the guide and of the README of the package run, each page in a namespace of its own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import unittest
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parents[3]


def blocks(page: Path) -> List[str]:
    """The blocks of Python of a page, but for those that need a language model."""
    text = page.read_text("utf-8")
    found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for block in found if '"text-generation"' not in block]


class Documents(unittest.TestCase):
    def printed(self, page: Path) -> str:
        namespace: Dict[str, Any] = {"__name__": "page"}
        found = blocks(page)
        self.assertGreaterEqual(len(found), 3)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        (Path(folder.name) / "reviews.txt").write_text("A fine day.\nIt was terrible.\n", "utf-8")
        before = os.getcwd()
        os.chdir(folder.name)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                for block in found:
                    exec(compile(block, str(page), "exec"), namespace)
        finally:
            os.chdir(before)
        return out.getvalue()

    def test_guide_runs(self) -> None:
        printed = self.printed(ROOT / "docs" / "guides" / "python.md")
        for part in [
            "[{'label': 'positive', 'score': 0.9",
            "'entity_group': 'PER'",
            "1 positive\n2 negative\n2 delivered\n",
            "can you send the price list? ['price'] action_item",
        ]:
            self.assertIn(part, printed)

    def test_readme_runs(self) -> None:
        printed = self.printed(ROOT / "clients" / "python" / "README.md")
        self.assertIn("{'label': 'negative'", printed)
        self.assertIn("1 positive 0.9", printed)


if __name__ == "__main__":
    unittest.main()
