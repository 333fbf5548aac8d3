"""The checklist names tests that there are."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_that_the_checklist_names_is_one() -> None:
    names: dict[str, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):  # two rooms may have a file of one name
        found = re.findall(r"def (test_\w+)", path.read_text())
        names.setdefault(path.name, set()).update(found)
    every = set().union(*names.values())
    named = re.findall(r"`([^`\s]+)`", (TESTS / "ui" / "CHECKLIST.md").read_text())
    files = [text.split("/")[-1].partition("::") for text in named if ".py" in text]
    assert len(files) > 70
    assert [file for file, _, name in files if name and name not in names[file]] == []
    parts = [text.strip("…") for text in named if text.startswith("…")]
    assert [part for part in parts if not any(part in name for name in every)] == []
