"""Programs compiled and not run: what they keep, move and send. A program of its own, started by `model`.

Each target needs an environment of its own, so nothing but JAX, Flax, Optax and bnjax is imported here. It reads what
to do as JSON from its argument and prints a JSON record for every program, as soon as it is compiled for the last time.
"""

import time
from collections.abc import Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.bench import rows
from experiments.bench.rows import Program
from experiments.measure import hlo
from experiments.measure.compile import run_child
from experiments.measure.explain import explain
from experiments.measure.targets import Target, devices, target_of

BASELINE = "flax.linen"


def compile_once(program: Program, on: list[Any]) -> tuple[Any, float, float]:
    """The compiled program, and the seconds to trace and lower and to compile it, nothing of it known before."""
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
        "estimated_cycles": hlo.estimated_cycles(text),
        "temporary_megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "gigabytes_moved": gigabytes,
        "gigaflops": gigaflops,
        "collectives": sum(hlo.collectives(text).counts.values()),
        "all_reduces": hlo.all_reduces(text),
        "convolutions": hlo.convolutions(text),
        "kernels": len(hlo.kernels(text)),
    }


def measure(
    programs: list[Program], target: Target, on: list[Any], repeats: int, explains: bool = False
) -> Iterator[dict[str, Any]]:
    """The facts of programs that are compared; compiled in turn, and the least times kept."""
    jax.jit(lax.neg).lower(jnp.ones(1)).compile()  # what is only slow the first time
    times: dict[str, list[tuple[float, float]]] = {p.contender: [] for p in programs}
    base = ""
    for repeat in range(repeats):
        for program in programs:
            used = on[:1] if program.alone else on
            compiled, *seconds = compile_once(program, used)
            times[program.contender].append((seconds[0], seconds[1]))
            if repeat < repeats - 1:
                continue
            traces, compiles = zip(*times[program.contender], strict=True)
            found = {
                "what": program.what, "contender": program.contender, "devices": len(used),
                **facts(compiled, target), "repeats": repeats,
                "trace_seconds": min(traces), "compile_seconds": min(compiles),
            }  # fmt: skip
            if program.contender == BASELINE:
                base = compiled.as_text()
            elif explains and base:
                found["explained"] = explain(compiled.as_text(), base)
            yield found


def main(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    target = target_of(task["target"])
    if target.missing:
        yield {"skipped": target.missing}
        return
    on = devices(target)
    settings = rows.Settings(task["dtype"], len(on), task["blocks"], task["memory_switch"])
    versions = f"jax {jax.__version__}, flax {flax.__version__}"
    common = {"target": str(target), "dtype": task["dtype"], "versions": versions}
    for row in rows.chosen(tuple(task["works"])):
        programs = row.programs(row.name, settings)
        chosen = [p for p in programs if p.contender.startswith(tuple(task["contenders"]) or "")]
        for record in measure(chosen, target, on, task["repeats"], task["explain"]):
            yield {**common, **record}


if __name__ == "__main__":
    run_child(main)
