"""What a compiled program says about itself in its text."""

import math
import re

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip

_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


def bytes_of(type_: str) -> int:
    """The size of a value from its type in HLO.

    >>> bytes_of("(bf16[32,8]{1,0}, f32[])")
    516
    """
    return sum(BYTES[dtype] * math.prod(_sizes(shape)) for dtype, shape in _ARRAY.findall(type_))


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in shape.split(",") if size]


def all_reduces(text: str) -> int:
    """How many times devices add up; one that starts and is done later counts once."""
    return len(re.findall(r" all-reduce(?:-start)?\(", text))


def convolutions(text: str) -> int:
    """Convolutions, as instructions or as calls of a library."""
    return len(re.findall(r" convolution\(|custom_call_target=\"\w*\$\w*[cC]onv", text))


def entry(text: str) -> str:
    """The computation that the program starts with."""
    found = re.search(r"^ENTRY .*?^}", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError("`text` must be the HLO of a module, but it has no ENTRY computation.")
    return found[0]


def fusion_bytes(text: str) -> int:
    """What the fusions of the entry computation read and write: the sizes of their operands and results.

    Each is one kernel on a GPU, whose compiler has no cost analysis of its own.
    """
    sizes: dict[str, int] = {}
    total = 0
    for line in entry(text).splitlines():
        if (found := _INSTRUCTION.match(line)) is None:
            continue
        name, type_, opcode, rest = found.groups()
        sizes[name] = bytes_of(type_)
        if opcode == "fusion":
            operands = re.findall(r"%([\w.\-]+)", rest.split(", kind=")[0])
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return total


def convolution_flops(text: str) -> float:
    """The floating-point operations of cuDNN's convolutions: 2 x pixels put out x weights, forward and backward."""
    types = {found[1]: found[2] for found in map(_INSTRUCTION.match, text.splitlines()) if found}
    total = 0.0
    for line in text.splitlines():
        call = re.search(r'dim_labels=\w+->(\w+), custom_call_target="__cudnn\$conv(\w+)"', line)
        found = _INSTRUCTION.match(line)
        if call is None or found is None:
            continue
        operands = re.findall(r"%([\w.\-]+)", found[4].split("), ")[0])
        first, second = (types.get(operand, "") for operand in operands[:2])
        result = found[2]
        put_out, weights = {
            "BackwardInput": (first, second),  # the gradient of what was put out, the weights
            "BackwardFilter": (second, result),
        }.get(call[2], (result, second))
        sizes = _shape(put_out)
        total += 2 * math.prod(sizes) / sizes[call[1].index("f")] * math.prod(_shape(weights))
    return total


def _shape(type_: str) -> list[int]:
    found = _ARRAY.search(type_)
    return _sizes(found[2]) if found else []
