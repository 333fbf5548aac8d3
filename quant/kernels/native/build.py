"""Compiles the native library; run by ``setup.py`` at install, or as a program in a checkout.

Imports nothing but the standard library, since an isolated build has nothing else. Usage:
``python -m quant.kernels.native.build`` (or with the path of this file).
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
LIBRARY = Path(__file__).parent / "_native.so"
COMPILERS = ("c++", "g++", "clang++")
# Contraction off: which products fuse must not depend on the flags of a file. The two math flags
# let rounding loops vectorize; nothing here reads errno or floating-point exceptions.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
# By machine the flags of the files that need more than its baseline. No file uses -march=native:
# the library chooses at run time among what it holds.
PATH_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "isa_avx2": AVX2,
        "isa_avx512": (*AVX512, "-mprefer-vector-width=512"),
        "isa_amx": (*AVX512, "-mprefer-vector-width=512", "-mamx-tile", "-mamx-int8"),
    },
    "aarch64": {"isa_neon": ("-march=armv8.2-a+dotprod",)},
}
PATH_FLAGS["amd64"] = PATH_FLAGS["x86_64"]
PATH_FLAGS["arm64"] = PATH_FLAGS["aarch64"]


class BuildError(Exception):
    """The library could not be compiled; the message says why."""


def find_compiler() -> list[str]:
    """The command of a C++ compiler: ``$CXX`` or the first that is installed.

    Raises:
        BuildError: If there is none.
    """
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(f"no C++ compiler found (looked for $CXX, {', '.join(COMPILERS)})")


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise BuildError(f"cannot run {command[0]}: {exc}") from exc
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()[-2000:]}")


def compile_library(
    target: Path = LIBRARY,
    compiler: Sequence[str] = (),
    machine: str = "",
    extra_flags: Sequence[str] = (),
) -> None:
    """Compile every source and link the library.

    A file for an instruction set that the compiler does not know is compiled without its flags
    and then provides nothing.

    Args:
        target: Path of the library.
        compiler: Command; by default `find_compiler`'s.
        machine: As ``platform.machine()``; for cross-compiling.
        extra_flags: For instance of a sanitizer, for compiling and linking.

    Raises:
        BuildError: If there is no compiler or it refuses.
    """
    command = [*(compiler or find_compiler()), *FLAGS, *extra_flags]
    path_flags = PATH_FLAGS.get((machine or platform.machine()).lower(), {})

    def compile_one(source: Path, folder: Path) -> str:
        output = str(folder / f"{source.stem}.o")
        flags = path_flags.get(source.stem, ())
        try:
            _run([*command, *flags, "-c", str(source), "-o", output])
        except BuildError:
            if not flags:
                raise
            _run([*command, "-c", str(source), "-o", output])
        return output

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as workers:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = list(workers.map(lambda source: compile_one(source, Path(folder)), sources))
        linked = str(Path(folder) / target.name)
        _run([*command, "-shared", *objects, "-o", linked])
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file, never an overwritten one: a process that has the old one mapped keeps it.
        target.unlink(missing_ok=True)
        shutil.copy(linked, target)


if __name__ == "__main__":
    try:
        compile_library()
    except BuildError as error:
        sys.exit(f"error: {error}")
