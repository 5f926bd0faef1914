"""Compile the fused kernels to the machine code of GPUs, without one.

Run by a test in a process of its own, in which Triton compiles and does not interpret.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_unlearn.guardrail.kernels import triton_step as fused


TARGETS = [GPUTarget("cuda", architecture, 32) for architecture in (75, 80, 90)] + [GPUTarget("hip", "gfx942", 64)]
CONSTANTS = ("bias", "drift", "other_mean", "row_variance", "token_variance", "sum_weight")
NUMBERS = dict.fromkeys(("min_tokens", "tau", "limit", *CONSTANTS), "fp32")
STRIDES = (
    "row_stride",
    "ids_stride",
    "mask_stride",
    "earlier_stride",
    "column_stride",
    "keys_stride",
    "previous_stride",
)
NUMBERS |= dict.fromkeys((*STRIDES, "last_id", "past", "d_in", "n", "guarded"), "i32")
TENSORS = {"ids": "*i64", "mask": "*i64", "earlier": "*i64", "content": "*i1"}
STREAMS = ("hidden", "onto", "edited")
FLAGS = (
    "WINDOWED",
    "HAS_LIMIT",
    "HAS_IDS",
    "HAS_MASK",
    "HAS_EARLIER",
    "HAS_PREVIOUS",
    "HAS_EVIDENCE",
    "STICKY",
    "CLAMP_ALL",
)


def size_of(kernel: Any, constants: dict[str, Any], stream: str, target: GPUTarget) -> int:
    """Bytes of a kernel's machine code, for a residual stream of a type such as "*fp32"."""
    names = [parameter.name for parameter in kernel.params]
    kinds = dict.fromkeys(names, "*fp32") | TENSORS | NUMBERS | dict.fromkeys(STREAMS, stream)
    if kernel is fused.encode_kernel:
        kinds["bias"] = "*fp32"  # the encoder's
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature={name: kinds[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    made = triton.compile(source, target=target).asm
    return len(made["cubin" if target.backend == "cuda" else "hsaco"])


def main() -> None:
    for target in TARGETS:
        for stream, on in (("*fp32", True), ("*bf16", False)):
            encode = {"HAS_LIMIT": on, **fused.ENCODE_TILE}
            gate = dict.fromkeys(FLAGS, on) | fused.FIELDS | fused.EDIT_TILE
            sizes = [size_of(fused.encode_kernel, encode, stream, target)]
            sizes.append(size_of(fused.gate_kernel, gate, stream, target))
            print(target.arch, stream, on, sizes)


if __name__ == "__main__":
    main()
