"""Nothing needs a POSIX module to be imported: where it is used, it may be missing."""

import subprocess
import sys

IMPORT_ALL = """
import builtins, importlib, pkgutil
import erniechat, quant

POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
real_import = builtins.__import__


def import_on_windows(name, globals=None, *rest):
    importer = (globals or {}).get("__name__") or ""
    if name in POSIX and importer.split(".")[0] in ("erniechat", "quant"):
        print(f"{importer} imports {name}")
    return real_import(name, globals, *rest)


builtins.__import__ = import_on_windows
number = 0
for package in (erniechat, quant):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("._native"):
            continue  # a library of functions, no module
        try:
            importlib.import_module(module.name)
            number += 1
        except ModuleNotFoundError as exc:  # of an extra that is not installed
            assert exc.name.split(".")[0] not in {"erniechat", "quant", *POSIX}, exc
print(number)
"""


def test_no_module_imports_what_windows_has_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 200, done.stdout
