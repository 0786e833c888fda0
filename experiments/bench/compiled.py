"""Programs compiled and not run: what they keep, move and send. A program of its own, started by `model`.

Each target needs an environment of its own, so nothing but JAX, Flax, Optax and bnjax is imported here. It reads what
to do as JSON from its argument and prints a JSON record for every program, as soon as it is compiled for the last time.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.bench import contenders, resnet, work
from experiments.bench.resnet import models
from experiments.measure import hlo
from experiments.measure.compile import run_child
from experiments.measure.targets import Target, devices, target_of

BATCH, SIZE = 32, 224  # examples for each device, pixels
IMAGE = (56, 56, 256)  # of the norm alone
ALONE = ("flax.linen", "bnjax, relu outside", "bnjax, relu inside")


class Program(NamedTuple):
    """Something to compile: a function, its operands, which of them are split over the devices, and which donated."""

    what: str
    contender: str
    make: Callable[[], Callable[..., Any]]  # a new function every time, or JAX would not trace it again
    operands: tuple[Any, ...]
    split: tuple[bool, ...]
    donated: tuple[int, ...] = ()


def step_programs(dtype: str, examples: int, size: int, memory_switch: bool, **attributes: Any) -> Iterator[Program]:
    """An SGD step of ResNet-50 with every norm."""
    for name, chosen in models(memory_switch).items():
        model = resnet.ResNet(dtype=jnp.dtype(dtype), **chosen, **attributes)
        batch = resnet.images_and_labels(examples, size, model.dtype)
        state = jax.eval_shape(partial(resnet.initial, model, batch[0]))
        make = partial(resnet.step_of, model)
        yield Program("ResNet-50 step", name, make, (*state, *batch), (False,) * 3 + (True,) * 2, (0, 1, 2))


def norm_programs(dtype: str, examples: int) -> Iterator[Program]:
    """One norm, forward and backward."""
    for kind in (w for w in work.BATCH if w.training):
        case = work.Case(kind, (examples, *IMAGE), dtype)
        tensors = work.tensors(case, partial(jax.ShapeDtypeStruct, case.shape, jnp.dtype(dtype)))
        for name, _, build in contenders.CONTENDERS:
            if name in ALONE and (layer := build(case)) is not None:
                operands = jax.eval_shape(lambda *t: t, layer.variables, layer.state, *tensors)
                split = (False, False, True, True, True)
                yield Program(kind.name, name, partial(contenders.program, layer, True), operands, split)


def compile_once(program: Program, target: Target, on: list[Any]) -> tuple[Any, float, float]:
    """The compiled program, and the seconds to trace and to compile it, nothing of it known before."""
    mesh = Mesh(np.array(on), ("d",))
    shardings = tuple(NamedSharding(mesh, P("d") if split else P()) for split in program.split)
    jax.clear_caches()
    began = time.perf_counter()
    # What is put out is left to the compiler where it is split, and of the state of a step it must be whole.
    out = (shardings[0],) * 4 if program.donated else None
    jitted = jax.jit(program.make(), in_shardings=shardings, out_shardings=out, donate_argnums=program.donated)
    lowered = jitted.lower(*program.operands)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, traced - began, time.perf_counter() - traced


def facts(compiled: Any, target: Target) -> dict[str, float]:
    """What a compiled program needs, on each device."""
    text = compiled.as_text()
    if target.platform == "gpu":
        gigabytes, gigaflops = hlo.fusion_bytes(text) / 1e9, hlo.convolution_flops(text) / 1e9
    else:
        cost = compiled.cost_analysis()
        gigabytes, gigaflops = cost.get("bytes accessed", 0) / 1e9, cost.get("flops", 0) / 1e9
    return {
        "temporary_megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "gigabytes_moved": gigabytes,
        "gigaflops": gigaflops,
        "all_reduces": hlo.all_reduces(text),
        "convolutions": hlo.convolutions(text),
    }


def measure(programs: list[Program], target: Target, on: list[Any], repeats: int) -> Iterator[dict[str, Any]]:
    """The facts of every program; compiled in turn, and the fastest time kept."""
    jax.jit(lax.neg).lower(jnp.ones(1)).compile()  # what is only slow the first time
    times: dict[int, list[tuple[float, float]]] = {i: [] for i in range(len(programs))}
    for repeat in range(repeats):
        for i, program in enumerate(programs):
            compiled, *seconds = compile_once(program, target, on)
            times[i].append((seconds[0], seconds[1]))
            if repeat == repeats - 1:
                trace, compile_ = min(times[i], key=sum)
                yield {
                    "what": program.what, "contender": program.contender, **facts(compiled, target),
                    "trace_seconds": trace, "compile_seconds": compile_,
                }  # fmt: skip


def main(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    target = target_of(task["target"])
    if target.missing:
        yield {"skipped": target.missing}
        return
    on = devices(target)
    examples = BATCH * len(on)
    versions = f"jax {jax.__version__}, flax {flax.__version__}"
    common = {"target": str(target), "devices": len(on), "dtype": task["dtype"], "versions": versions}
    lists = [
        list(norm_programs(task["dtype"], examples)),
        list(step_programs(task["dtype"], examples, SIZE, task["memory_switch"])),
    ]
    for programs in lists:
        chosen = [p for p in programs if p.contender.startswith(tuple(task["contenders"]) or "")]
        for record in measure(chosen, target, on, task["repeats"]):
            yield {**common, **record}


if __name__ == "__main__":
    run_child(main)
