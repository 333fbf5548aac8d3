"""Kernels compiled for a GPU that need not be there: compilers refuse what interpreters take."""

import importlib.util
import os

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter does not compile", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quant.kernels.triton import decode, sampling

TYPES = {
    "*fp32": "logits largest scores given penalty best absmax xs squares",
    "*fp64": "controls",
    "*i64": "choice found counts masses state winners token best_at",
    "*i32": "counter codes xq",
    "*u8": "seen",
    "i32": "num_tokens",
    "fp32": "eps",
}
TYPE_OF = {name: kind for kind, names in TYPES.items() for name in names.split()}
ROUND = {"BLOCK": sampling.BLOCK, "PTX": True}
HEAD = {"HIDDEN": 2560, "PADDED_GROUPS": 256, "ROWS": 16, "WARPS": 8, "PTX": True, "BITS": 8}
KERNELS = {
    "begin": (sampling.begin_kernel, {"ROWS": 16}),
    "pick": (sampling.pick_kernel, {"NUM": 6464, "PADDED": 8192}),
    "draw": (sampling.draw_kernel, {"K": True, "P": True, "BLOCK": 512, "PADDED": 256}),
    "top-k": (sampling.round_kernel, {"SHIFT": 24, "MASS": False, "K": False, **ROUND}),
    "top-p": (sampling.round_kernel, {"SHIFT": 0, "MASS": True, "K": True, **ROUND}),
    "head": (decode.head_kernel, HEAD),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_for_hopper(name):
    kernel, sizes = KERNELS[name]
    sizes = {**sizes, "PDL": False}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in sizes else TYPE_OF[n] for n in names}
    constants = {(names.index(n),): value for n, value in sizes.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": 8 if name == "head" else 4}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
