"""Compiles the GPU's kernels down to machine code, which needs no GPU: `python -m tests.gpu.compile_kernels`.

Writes one line for each kernel, width and generation: the bytes of local memory, where registers that do not
fit are spilled.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from dmsae import gpu_kernels

GENERATIONS = (80, 90)
"""A100 and H100."""
WIDTHS = (16, 576, 2304)
FLOAT32, INT64, FLOAT, INT = "*fp32", "*i64", "fp32", "i32"
SIGNATURES: dict[str, dict[str, Any]] = {
    "decode_tokens": {
        "active": (INT64, INT64, FLOAT32),
        "weights": (FLOAT32, FLOAT32),
        "x": FLOAT32,
        "out": (FLOAT32, FLOAT32, FLOAT32),
        "shape": (INT, INT, INT),
        "weight": FLOAT,
    },
    "gather_gradients": {
        "active": (INT64, INT64, FLOAT32, FLOAT32),
        "inputs": (INT64, FLOAT32, FLOAT32, FLOAT32),
        "dead": (INT64, FLOAT32, FLOAT32, FLOAT32),
        "out": (FLOAT32,) * 5,
        "shape": (INT, INT, INT),
        "weight": FLOAT,
    },
    "adam_rows": {
        "rows": FLOAT32,
        "gradient": (FLOAT32, FLOAT32),
        "state": (FLOAT32, FLOAT32),
        "rates": (FLOAT,) * 8,
        "shape": (INT, INT),
    },
}


def compiled(name: str, width: int, generation: int) -> CompiledKernel:
    """Compile a kernel for rows of `width` numbers."""
    block, n_warps = gpu_kernels.layout(width)
    constants = {"BLOCK": block, **({"TO_UNIT": True} if name == "adam_rows" else {})}
    function = getattr(gpu_kernels, name)
    types = {**SIGNATURES[name], **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(function, {argument: types[argument] for argument in function.arg_names}, constants)
    target = GPUTarget("cuda", generation, 32)
    return triton.compile(source, target=target, options={"num_warps": n_warps})


def local_bytes(kernel: CompiledKernel) -> int:
    """Give the bytes of local memory of each thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        command = [str(tool), "--dump-resource-usage", str(binary)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", said)))


if __name__ == "__main__":
    for generation in GENERATIONS:
        for name in SIGNATURES:
            for width in WIDTHS:
                spilled = local_bytes(compiled(name, width, generation))
                sys.stdout.write(f"{name} sm_{generation} width {width}: {spilled}\n")
