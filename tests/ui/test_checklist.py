"""The checklist names tests that there are."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_that_the_checklist_names_is_one() -> None:
    names = {
        path.name: set(re.findall(r"def (test_\w+)", path.read_text()))
        for path in TESTS.rglob("test_*.py")
    }
    every = set().union(*names.values())
    named = re.findall(r"`([^`\s]+)`", (TESTS / "ui" / "CHECKLIST.md").read_text())
    files = [text.split("/")[-1].partition("::") for text in named if ".py" in text]
    assert len(files) > 70
    assert [file for file, _, name in files if name and name not in names[file]] == []
    parts = [text.strip("…") for text in named if text.startswith("…")]
    assert [part for part in parts if not any(part in name for name in every)] == []
