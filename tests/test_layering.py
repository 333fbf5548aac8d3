"""Who may import whom: reads every import of erniechat/ and quant/ and holds it to the house rules.

Imports point downwards only, in the order of RANKS. Two groups of one rank do not know each other.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("erniechat", "quant")

# Bottom first; each rank is a list of groups, and a module may import its own group and any below.
RANKS = (
    (("quant",),),
    (
        (
            "erniechat",
            "erniechat.events",
            "erniechat.option",
            "erniechat.options",
            "erniechat.paths",
            "erniechat.sizes",
            "erniechat.errors",
        ),
    ),
    (("erniechat.model",), ("erniechat.chat",)),
    (("erniechat.generation",),),
    (("erniechat.backend",),),
    (
        (
            "erniechat.loader",
            "erniechat.early",
            "erniechat.placing",
            "erniechat.planning",
            "erniechat.start_plan",
            "erniechat.export",
            "erniechat.model_commands",
            "erniechat.start_notice",
            "erniechat.fetch_plan",
            "erniechat.weights",
            "erniechat.repair",
            "erniechat.hub",
            "erniechat.fit",
            "erniechat.calibration",
            "erniechat.doctor",
            "erniechat.machine",
            "erniechat.memory_plan",
            "erniechat.model_sizes",
            "erniechat.plan_text",
            "erniechat.profiles",
            "erniechat.model_text",
            "erniechat.resolve",
            "erniechat.info",
            "erniechat.cache",
            "erniechat.bench",
            "erniechat.comparison",
            "erniechat.quality",
            "erniechat.engine",
            "erniechat.current_session",
            "erniechat.decode_reads",
            "erniechat.context",
            "erniechat.prompts",
            "erniechat.reply",
            "erniechat.turn",
            "erniechat.arrival",
        ),
        ("erniechat.ui",),
    ),
    (("erniechat.__main__", "erniechat.cli", "erniechat.side_commands"),),
)
MINI = "erniechat.mini"  # its scripts make the built-in model, from above; they may import all
MINI_READERS = ("erniechat.loader", "erniechat.resolve")  # resolve is the loader's first step
# Rooms without torch and what brings it, so that --help and the terminal start at once.
LIGHT = (
    "erniechat.ui",
    "erniechat.chat",
    "erniechat.backend",
    "erniechat.events",
    "erniechat.option",
    "erniechat.options",
    "erniechat.paths",
    "erniechat.sizes",
    "erniechat.errors",
    "erniechat.__main__",
)
HEAVY = ("torch", "quant", "bitsandbytes", "transformers", "safetensors.torch", "triton")
BITSANDBYTES_READER = "quant.kernels.bnb"
# An import inside a function hides what a module needs; here it is what keeps a start short.
LAZY_IMPORTERS = ("erniechat.cli", "quant.kernels.bnb", "quant.kernels.triton.backend")


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def room_of(module: str) -> tuple[int, int] | None:
    """Rank and group of a module by its longest matching entry; None if it has none."""
    found = [
        (len(name), rank, group)
        for rank, groups in enumerate(RANKS)
        for group, names in enumerate(groups)
        for name in names
        # The root package is its __init__ alone: a new room must be given its rank.
        if (module == name if name == "erniechat" else is_within(module, name))
    ]
    return max(found)[1:] if found else None


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports_of(tree: ast.Module) -> list[tuple[str, bool]]:
    """Each imported module, a relative one with its dots, and whether a function imports it."""
    found = []

    def visit(node: ast.AST, in_function: bool) -> None:
        for target in targets_of(node):
            found.append((target, in_function))
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function or inner)

    visit(tree, False)
    return found


def targets_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level or node.module is None:
            return ["." * node.level + (node.module or "")]
        # "from erniechat import engine" means the module erniechat.engine.
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if is_module(name) or name in KNOWN else node.module for name in names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func)
        if called in ("__import__", "import_module", "importlib.import_module"):
            return [str(node.args[0].value)]
    return []


KNOWN = {name for rank in RANKS for group in rank for name in group} | {MINI, *HEAVY}


def faults_of(module: str, source: str) -> list[str]:
    """What is wrong with a module's imports and head, one line each."""
    tree = ast.parse(source)
    faults = [] if ast.get_docstring(tree) else [f"{module} does not open with a docstring"]
    in_mini = is_within(module, MINI)
    if not in_mini and is_within(module, "erniechat") and room_of(module) is None:
        faults.append(f"{module} has no place in RANKS; give it one")
    for target, in_function in imports_of(tree):
        is_heavy = any(is_within(target, package) for package in HEAVY)
        if in_function and is_heavy and not in_mini and module not in LAZY_IMPORTERS:
            faults.append(f"{module} imports {target} inside a function")
        faults += direction_faults(module, target, in_mini)
    return faults


def direction_faults(module: str, target: str, in_mini: bool) -> list[str]:
    if target.startswith("."):
        return [f"{module} imports {target}, which is relative"]
    if is_within(target, "bitsandbytes") and module != BITSANDBYTES_READER:
        return [f"{module} imports {target}; only {BITSANDBYTES_READER} may"]
    if is_within(target, MINI) and not in_mini and module not in MINI_READERS:
        return [f"{module} imports {target}; only {', '.join(MINI_READERS)} may"]
    is_light = any(is_within(module, room) for room in LIGHT)
    if is_light and any(is_within(target, package) for package in HEAVY):
        return [f"{module} imports {target}, which brings torch"]
    if module == MINI and is_within(target, "erniechat") and not is_within(target, MINI):
        return [f"{module} imports {target}, which may import it"]
    if in_mini or is_within(target, MINI):
        return []
    mine, other = room_of(module), room_of(target)
    if mine is None or other is None or mine == other or other[0] < mine[0]:
        return []
    return [f"{module} imports {target}, which is not below it"]


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_the_rules_of_the_house(path):
    assert faults_of(module_of(path), path.read_text(encoding="utf-8")) == []


GOOD_MODULES = [
    ("erniechat.cli", "def main():\n    import torch\n    from erniechat.engine import Engine"),
    ("erniechat.cli", "from erniechat.ui import repl\nfrom erniechat import __version__"),
    ("erniechat.engine", "from erniechat.backend import ChatBackend\nfrom erniechat import loader"),
    ("erniechat.engine", "from erniechat.chat.template import render\nimport quant.memory"),
    ("erniechat.loader", "from erniechat import mini\nfrom erniechat.engine import Engine"),
    ("erniechat.backend", "from erniechat.chat.conversation import Message"),
    ("erniechat.ui.repl", "from erniechat.ui.keys import KEYS\nfrom erniechat.backend import Info"),
    ("erniechat.chat.reply_parser", "from erniechat.chat.tags import TAGS"),
    ("erniechat.model.ernie4_5", "import torch\nfrom quant.linear import QuantLinear"),
    ("erniechat.mini.tools.train", "import torch\nfrom erniechat.engine import Engine"),
    ("erniechat.ui.keys", "def quiet():\n    import termios"),
    ("quant.kernels.bnb", "def library():\n    import bitsandbytes.functional"),
]


@pytest.mark.parametrize(("module", "body"), GOOD_MODULES)
def test_the_checker_accepts_what_the_rules_allow(module, body):
    assert faults_of(module, f'"""Head."""\n{body}\n') == []


BAD_MODULES = [
    ("erniechat.ui.repl", "import torch", "brings torch"),
    ("erniechat.ui.repl", "import torch.nn.functional as F", "brings torch"),
    ("erniechat.ui.repl", "if TYPE_CHECKING:\n    from torch import Tensor", "brings torch"),
    ("erniechat.chat.session", "from quant.errors import QuantError", "brings torch"),
    ("erniechat.options", "import torch", "brings torch"),
    ("erniechat.ui.repl", "from erniechat.engine import Engine", "not below"),
    ("erniechat.ui.repl", "from erniechat import loader", "not below"),
    ("erniechat.ui.repl", "import erniechat.cli", "not below"),
    ("erniechat.engine", "from erniechat.ui.repl import run", "not below"),
    ("erniechat.chat.session", "from erniechat.backend import ChatBackend", "not below"),
    ("erniechat.chat.session", "from erniechat.model import config", "not below"),
    ("erniechat.model.layers", "from erniechat.chat import template", "not below"),
    ("erniechat.model.layers", "from erniechat.generation.sampling import sample", "not below"),
    ("erniechat.generation.sampling", "from erniechat.engine import Engine", "not below"),
    ("erniechat.events", "from erniechat.chat.conversation import Message", "not below"),
    ("erniechat", "from erniechat import cli", "not below"),
    ("quant.linear", "from erniechat.errors import ErnieChatError", "not below"),
    ("quant.linear", "import erniechat", "not below"),
    ("quant.linear", 'import importlib\nimportlib.import_module("erniechat.errors")', "not below"),
    ("quant.formats.nf4", "import bitsandbytes", "only quant.kernels.bnb may"),
    ("erniechat.mini.tools.measure", "from bitsandbytes import nn", "only quant.kernels.bnb may"),
    ("erniechat.engine", "from erniechat.mini import checkpoint", "only erniechat.loader, "),
    ("erniechat.cli", "from erniechat import mini", "only erniechat.loader, "),
    ("erniechat.mini", "from erniechat.loader import load", "which may import it"),
    ("erniechat.engine", "def f():\n    import torch", "inside a function"),
    ("quant.linear", "class A:\n    def f(self):\n        import triton", "inside a function"),
    ("erniechat.engine", "f = lambda: __import__('transformers')", "inside a function"),
    ("quant.linear", "from .tensor import QuantTensor", "relative"),
    ("quant.linear", "from . import tensor", "relative"),
    ("erniechat.gadgets", "import json", "no place in RANKS"),
]


@pytest.mark.parametrize(("module", "body", "fault"), BAD_MODULES)
def test_the_checker_finds_what_breaks_a_rule(module, body, fault):
    faults = faults_of(module, f'"""Head."""\n{body}\n')
    assert any(fault in line for line in faults)
    assert all(line.startswith(module) for line in faults)


def test_the_checker_finds_a_file_without_a_docstring():
    assert faults_of("quant.linear", "import torch\n") == [
        "quant.linear does not open with a docstring"
    ]


def test_the_checker_has_files_to_check():
    assert {"erniechat.options", "quant", "quant.kernels.bnb"} <= {module_of(p) for p in FILES}


def modules_after(statement: str) -> set[str]:
    command = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.skipif(not (ROOT / "erniechat/cli.py").exists(), reason="there is no cli.py yet")
def test_the_command_line_starts_without_torch():
    loaded = modules_after("import erniechat.cli")
    assert "erniechat.cli" in loaded
    assert not loaded & {"torch", "numpy", "transformers", "bitsandbytes"}


def test_bitsandbytes_is_imported_only_when_it_is_used():
    loaded = modules_after("import quant.kernels, quant.linear, quant.experts.store")
    assert "torch" in loaded
    assert "bitsandbytes" not in loaded


def test_planning_and_profiles_need_no_torch():
    loaded = modules_after("import quant.experts.placement, quant.experts.profile, erniechat.cache")
    assert "torch" not in loaded
