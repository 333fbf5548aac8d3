"""Compiles the native CPU kernels at install; everything else is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# By path: the packages themselves cannot be imported while they are being built.
BUILD = Path(__file__).parent / "quant" / "kernels" / "native" / "build.py"


class BuildNative(build_ext):
    """Runs the package's own build, one file per instruction set, in place of setuptools'."""

    def get_ext_filename(self, fullname: str) -> str:
        """A plain name: the library is loaded by path, by every version of Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile; a failure is a warning, since the extension is optional."""
        native = runpy.run_path(str(BUILD))
        try:
            native["compile_library"](Path(self.get_ext_fullpath(ext.name)).absolute())
        except native["BuildError"] as error:
            raise CompileError(str(error)) from error


setup(
    ext_modules=[Extension("quant.kernels.native._native", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative},
)
