"""What a compiled program says about itself in its text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


class Instruction(NamedTuple):
    """A line of a program: what it is called and is, of what it is made, and what else is said of it."""

    name: str
    type: str
    opcode: str
    operands: list[str]  # their names
    attributes: str

    @property
    def bytes(self) -> int:
        return bytes_of(self.type)


def instructions(text: str) -> Iterator[Instruction]:
    """All instructions of a program, or of one of its computations.

    >>> list(instructions("%d = f32[8] all-reduce(%a), to_apply=%add"))
    [Instruction(name='d', type='f32[8]', opcode='all-reduce', operands=['a'], attributes='to_apply=%add')]
    """
    for line in text.splitlines():
        if found := _INSTRUCTION.match(line):
            operands, _, attributes = found[4].partition("), ")
            yield Instruction(found[1], found[2], found[3], re.findall(r"%([\w.\-]+)", operands), attributes)


def bytes_of(type_: str) -> int:
    """The size of a value from its type in HLO.

    >>> bytes_of("(bf16[32,8]{1,0}, f32[])")
    516
    """
    return sum(BYTES[dtype] * math.prod(_sizes(shape)) for dtype, shape in _ARRAY.findall(type_))


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in shape.split(",") if size]


class Collectives(NamedTuple):
    """The collectives of a compiled program: how many of each kind, and the sizes of all operands together."""

    counts: dict[str, int]
    operand_bytes: int


def collectives(text: str) -> Collectives:
    r"""Of the text of a compiled program; one that starts and is done later counts once.

    >>> collectives("%a = f32[8] add(%b, %c)\n%d = f32[8] all-reduce(%a), to_apply=%add")
    Collectives(counts={'all-reduce': 1}, operand_bytes=32)
    """
    found = list(instructions(text))
    sizes = {i.name: i.bytes for i in found}
    counts: dict[str, int] = {}
    total = 0
    for i in found:
        if (kind := i.opcode.removesuffix("-start")) in COLLECTIVES:
            counts[kind] = counts.get(kind, 0) + 1
            total += sum(sizes[operand] for operand in i.operands)
    return Collectives(counts, total)


def all_reduces(text: str) -> int:
    """How many times devices add up; one that starts and is done later counts once."""
    return sum(i.opcode.removesuffix("-start") == "all-reduce" for i in instructions(text))


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
    for i in instructions(entry(text)):
        sizes[i.name] = i.bytes
        if i.opcode == "fusion":
            total += i.bytes + sum(sizes.get(operand, 0) for operand in i.operands)
    return total


def convolution_flops(text: str) -> float:
    """The floating-point operations of cuDNN's convolutions: 2 x pixels put out x weights, forward and backward."""
    found = list(instructions(text))
    types = {i.name: i.type for i in found}
    total = 0.0
    for i in found:
        call = re.search(r'dim_labels=\w+->(\w+), custom_call_target="__cudnn\$conv(\w+)"', i.attributes)
        if call is None:
            continue
        first, second = (types.get(operand, "") for operand in i.operands[:2])
        put_out, weights = {
            "BackwardInput": (first, second),  # the gradient of what was put out, the weights
            "BackwardFilter": (second, i.type),
        }.get(call[2], (i.type, second))
        sizes = _shape(put_out)
        total += 2 * math.prod(sizes) / sizes[call[1].index("f")] * math.prod(_shape(weights))
    return total


def _shape(type_: str) -> list[int]:
    found = _ARRAY.search(type_)
    return _sizes(found[2]) if found else []
