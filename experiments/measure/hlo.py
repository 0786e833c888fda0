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
NAMES_ONLY = {  # instructions that name a value and compute nothing
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all", "partition-id",
    "replica-id",
}  # fmt: skip
SLICES, CASTS = {"slice", "dynamic-slice"}, {"convert", "bitcast"}

_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^}", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"%?([\w.\-]+) = \S+ parameter\((\d+)\)")
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


def shapes(type_: str) -> list[str]:
    """The arrays of a type, without their layouts.

    >>> shapes("(bf16[32,8]{1,0}, f32[])")
    ['bf16[32,8]', 'f32[]']
    """
    return [f"{dtype}[{shape}]" for dtype, shape in _ARRAY.findall(type_)]


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


def kernels(text: str) -> list[Instruction]:
    r"""What the entry computation runs, one kernel, copy or call each; what starts and is done later is there once.

    >>> [i.name for i in kernels("ENTRY %main {\n  %a = f32[8] parameter(0)\n  %b = f32[8] negate(%a)\n}")]
    ['b']
    """
    found = instructions(entry(text))
    return [i for i in found if i.opcode not in NAMES_ONLY and not i.opcode.endswith("-done")]


def estimated_cycles(text: str) -> int:
    r"""The estimates that the TPU compiler writes beside the instructions of the entry computation; 0 elsewhere.

    >>> estimated_cycles('ENTRY %main {\n  %b = f32[8] negate(%a), backend_config={"estimated_cycles":"7"}\n}')
    7
    """
    return sum(map(int, _CYCLES.findall(entry(text))))


def cycles_of(instruction: Instruction) -> int:
    """The same of one instruction."""
    return sum(map(int, _CYCLES.findall(instruction.attributes)))


def fusion_bytes(text: str) -> int:
    """What the fusions of the entry computation read and write: the sizes of their operands and results.

    Each is one kernel on a GPU, whose compiler has no cost analysis of its own. An operand of which a fusion uses only
    a slice counts as that slice.
    """
    return sum(size for i, size in traffic(text) if i.opcode == "fusion")


def traffic(text: str) -> Iterator[tuple[Instruction, int]]:
    """Each kernel of the entry computation, and the bytes that it reads and writes."""
    sizes = {i.name: i.bytes for i in instructions(entry(text))}
    bodies = computations(text)
    for i in kernels(text):
        called = re.search(r"calls=%([\w.\-]+)", i.attributes)
        sliced = _sliced(bodies.get(called[1], "")) if called else {}
        read = (min(sizes.get(name, 0), sliced.get(n, math.inf)) for n, name in enumerate(i.operands))
        yield i, i.bytes + int(sum(read))


def computations(text: str) -> dict[str, str]:
    """The computations of a program, by name."""
    return {found[1]: found[0] for found in _COMPUTATION.finditer(text)}


def _sliced(body: str) -> dict[int, int]:
    """By number, the parameters of a computation of which only slices are used, and the bytes of those."""
    users: dict[str, list[Instruction]] = {}
    found = list(instructions(body))
    for i in found:
        for name in set(i.operands):
            users.setdefault(name, []).append(i)

    def used(name: str) -> float:
        """Elements; infinitely many where more than slices is used. A cast passes on what is used of it."""
        return sum(
            _elements(user.type)
            if user.opcode in SLICES and user.operands.count(name) == 1 and user.operands[0] == name
            else used(user.name) if user.opcode in CASTS
            else math.inf
            for user in users.get(name, ())
        ) or math.inf  # fmt: skip

    parameters = {i.name: i for i in found if i.opcode == "parameter"}
    numbers = {name: int(number) for name, number in _PARAMETER.findall(body)}
    return {
        numbers[name]: int(elements * i.bytes / _elements(i.type))
        for name, i in parameters.items()
        if (elements := used(name)) < math.inf
    }


def _elements(type_: str) -> int:
    return sum(math.prod(_sizes(shape)) for _, shape in _ARRAY.findall(type_))


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
