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

from quant.kernels.triton import attention, chunk_kernels, decode, sampling, tiles
from quant.kernels.triton.step import GATE_REGISTERS

TYPES = {
    "*fp32": "logits logit_parts largest scores given penalty best absmax xs squares x router bias "
    "weights qkv angles partial maxima sums os out ns as_ fetched delta routed",
    "*fp64": "controls",
    "*i64": "choice found counts masses state winners token best_at slot_of slots hits ids "
    "rows_of expert_of codes_at scales_at xq",
    "*i32": "counter codes cpu_share number num_asked ranks fill pos_of counters table asked "
    "arrived",
    "*i16": "oq aq nq",
    "*fp16": "scales",
    "*bf16": "norm normed",
    "*i8": "on_cpu",
    "*u8": "seen",
    "i32": "num_tokens layer_idx num_slots num_rows num_experts num_out num_inputs code_stride "
    "scale_stride",
    "i64": "request row_ids row_weights",
    "fp32": "eps norm_min scale",
}
TYPE_OF = {name: kind for kind, names in TYPES.items() for name in names.split()}
NORM = {"HIDDEN": 2560, "PADDED_GROUPS": 256}
FOUR = {"BITS": 4, "EXACT": False, "PTX": True}
EIGHT = {"BITS": 8, "EXACT": False, "PTX": True, "WARPS": 8}
GATE = {"WIDTH": 1536, "FIRST_FIXED": 6, "ASKS": False, **NORM}
DOWN = {"HIDDEN": 2560, "WIDTH": 1536, "NUM_SLOTS": 8, "SPLIT": 8, "ROUTED": True, "ASKS": True}
DOWN |= {"NUM_EXPERTS": 0, "PADDED_EXPERTS": 1}
OUTPUT = {**DOWN, "WIDTH": 2560, "NUM_SLOTS": 1, "SPLIT": 1, "ROUTED": False, "ASKS": False}
OUTPUT |= {"NUM_EXPERTS": 64, "PADDED_EXPERTS": 64}
ROUND = {"BLOCK": sampling.BLOCK, "PTX": True}
HEAD = {"HIDDEN": 2560, "PADDED_GROUPS": 256, "ROWS": 16, "WARPS": 8, "PTX": True, "BITS": 8}
EXPERTS = {"NUM_EXPERTS": 64, "TOP_K": 6}
ROUTE = {"HIDDEN": 2560, "PADDED_HIDDEN": 4096, "PADDED_GROUPS": 256, "PADDED_EXPERTS": 64}
ROUTE |= {"PTX": True, **EXPERTS}
ROWS = {"PADDED": 128, "SHARED": 2, "MAX_ROWS": 1024, **EXPERTS}
ATTENTION = {"NUM_LAYERS": 28, "NUM_KV": 4, "REP": 5, "RP": 16, "D": 128, "BT": 64, "SPLITS": 66}
ATTENTION |= {"BITS": 4, "PTX": True}
COMBINE = {"REP": 5, "RP": 16, "D": 128, "BT": 64, "SPLITS": 66, "PADDED_SPLITS": 128}
TABLES = dict.fromkeys(("U0", "U1", "U2", "U3", "L0", "L1", "L2", "L3"), 0)
TILES = {"BM": 64, "BN": 64, "BK": 64, "ROWS_PER_X": 8, "PTX": True, **TABLES}
TILES |= {"STAGES": 3, "UNIT": 0.7, "GROUPED": True, "GATED": True, "WEIGHTED": True}
KERNELS = {
    "attention": (attention.attention_kernel, ATTENTION),
    "combine": (attention.combine_kernel, {"BITS": 4, **COMBINE}),
    "combine for bf16": (attention.combine_kernel, {"BITS": 16, **COMBINE}),
    "4-bit tiles": (tiles.tiles_kernel, {"BITS": 4, **TILES}),
    "int8 tiles": (tiles.tiles_kernel, {**TILES, "BITS": 8}),
    "bf16 tiles": (tiles.tiles_kernel, {"BITS": 16, **TILES}),
    "route": (decode.route_kernel, {"ASKS": False, **ROUTE}),
    "route and ask": (decode.route_kernel, {"ASKS": True, **ROUTE}),
    "add and norm": (
        chunk_kernels.add_norm_kernel,
        {"HIDDEN": 2560, "PADDED": 4096, "NUM_DELTAS": 8, "ROUTED": True},
    ),
    "route rows": (chunk_kernels.route_rows_kernel, {"ASKS": False, **ROWS}),
    "route and send rows": (chunk_kernels.route_rows_kernel, {"ASKS": True, **ROWS}),
    "begin": (sampling.begin_kernel, {"ROWS": 16}),
    "pick": (sampling.pick_kernel, {"NUM": 6464, "PADDED": 8192}),
    "draw": (sampling.draw_kernel, {"K": True, "P": True, "BLOCK": 512, "PADDED": 256}),
    "top-k": (sampling.round_kernel, {"SHIFT": 24, "MASS": False, "K": False, **ROUND}),
    "top-p": (sampling.round_kernel, {"SHIFT": 0, "MASS": True, "K": True, **ROUND}),
    "head": (decode.head_kernel, HEAD),
    "4-bit QKV": (decode.project_kernel, {**FOUR, **NORM, "EXACT": True, "WARPS": 8}),
    "int8 QKV": (decode.project_kernel, {**EIGHT, **NORM}),
    "4-bit gate and up": (decode.gate_up_kernel, {**FOUR, **GATE, "WARPS": 2}),
    "int8 gate and up": (decode.gate_up_kernel, {**EIGHT, **GATE}),
    "4-bit output": (decode.add_kernel, {**FOUR, **OUTPUT, "EXACT": True, "WARPS": 4}),
    "4-bit down": (decode.add_kernel, {**FOUR, **DOWN, "ASKS": False, "WARPS": 2}),
    "4-bit down beside the CPU": (decode.add_kernel, {**FOUR, **DOWN, "WARPS": 2}),
    "int8 down": (decode.add_kernel, {**EIGHT, **DOWN, "ASKS": False}),
    "advance": (decode.advance_kernel, {}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_for_hopper(name):
    kernel, sizes = KERNELS[name]
    names = kernel.arg_names
    sizes = {n: value for n, value in {**sizes, "PDL": True}.items() if n in names}
    signature = {n: "constexpr" if n in sizes else TYPE_OF[n] for n in names}
    if "rows_of" in names:
        signature["x"] = "*bf16"
    if "scales" in names and sizes["BITS"] == 8:
        signature["scales"] = "*fp32"
    constants = {(names.index(n),): value for n, value in sizes.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": sizes.get("WARPS", 4), "launch_pdl": "PDL" in sizes}
    if kernel is decode.gate_up_kernel:
        options["maxnreg"] = GATE_REGISTERS[sizes["BITS"]]
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
