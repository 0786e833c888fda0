"""What is read from compiled programs, against programs whose traffic and communication can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.bench import compiled
from experiments.measure import hlo
from experiments.measure.targets import Target

CPU = Target("cpu")
TINY = {"stages": (1,), "filters": 2, "classes": 3}

GPU = """HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

ENTRY %main.1 (x: bf16[2,8,8,4], w: bf16[16,3,3,4]) -> bf16[16,3,3,4] {
  %x = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %w = bf16[16,3,3,4]{3,2,1,0} parameter(1)
  %y = (bf16[2,4,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="conv"}
  %get = bf16[2,4,4,16]{3,2,1,0} get-tuple-element(%y), index=0
  %two = (f32[16]{0}, bf16[2,4,4,16]{3,2,1,0}) fusion(%get, %w), kind=kLoop, calls=%fused
  %dy = bf16[2,4,4,16]{3,2,1,0} get-tuple-element(%two), index=1
  %sums = f32[16]{0} get-tuple-element(%two), index=0
  %start = f32[16]{0} all-reduce-start(%sums), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  %done = f32[16]{0} all-reduce-done(%start)
  %again = f32[16]{0} all-reduce(%done), channel_id=2, replica_groups=[1,4]<=[4], to_apply=%add
  %dx = (bf16[2,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %w), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  ROOT %dw = (bf16[16,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
}
"""  # noqa: E501


def test_a_gpu_program_is_read():
    y, w = 2 * 4 * 4 * 16, 16 * 3 * 3 * 4
    assert hlo.fusion_bytes(GPU) == 2 * y + 2 * w + (4 * 16 + 2 * y)  # two operands, a result of two parts
    assert hlo.all_reduces(GPU) == 2
    assert hlo.convolutions(GPU) == 3
    assert hlo.convolution_flops(GPU) == 3 * 2 * (2 * 4 * 4) * w


def test_a_fusion_reads_its_operands_and_writes_its_results():
    a, b = jnp.ones((64, 128)), jnp.ones((64, 128))
    text = jax.jit(lambda a, b: jnp.tanh(a) * b + 1).lower(a, b).compile().as_text()
    assert hlo.fusion_bytes(text) == 3 * 64 * 128 * 4


def test_what_is_not_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.fusion_bytes("HloModule nothing")


@pytest.mark.parametrize(("sums", "split", "want"), [(1, True, 1), (2, True, 2), (2, False, 0)])
def test_all_reduces_are_counted(sums, split, want):
    mesh = Mesh(np.array(jax.devices()), ("d",))
    rows, whole = NamedSharding(mesh, P("d" if split else None)), NamedSharding(mesh, P())

    def f(x):
        for _ in range(sums):  # each waits for the one before
            x = x - jnp.tanh(x.sum())
        return x

    x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    assert hlo.all_reduces(jax.jit(f, in_shardings=rows, out_shardings=rows).lower(x).compile().as_text()) == want
    assert hlo.all_reduces(jax.jit(f, in_shardings=whole).lower(x).compile().as_text()) == 0


def steps(memory_switch=False):
    """The step programs of a ResNet of one block, by contender."""
    return {p.contender: p for p in compiled.step_programs("float32", 16, 32, memory_switch, **TINY)}


def test_a_step_is_compiled_for_devices_and_not_run():
    on = jax.devices()
    programs = steps()
    assert list(programs) == ["flax.linen", "bnjax, drop-in", "bnjax, relu inside"]
    chosen = [programs["flax.linen"], programs["bnjax, relu inside"]]
    records = list(compiled.measure(chosen, CPU, on, repeats=1))
    assert [r["contender"] for r in records] == ["flax.linen", "bnjax, relu inside"]
    for r in records:
        assert r["convolutions"] >= 3 * 2  # of those that are no matrix products: forward, and two gradients
        assert r["all_reduces"] > 5  # each of five norms needs one at least
        assert r["temporary_megabytes"] > 0
        assert r["trace_seconds"] > 0
        assert r["compile_seconds"] > 0
    alone, _, _ = compiled.compile_once(programs["flax.linen"], CPU, on[:1])
    assert compiled.facts(alone, CPU)["all_reduces"] == 0


def test_the_memory_switch_computes_no_convolution_again():
    programs = steps(memory_switch=True)
    assert [name for name in programs if "remat" in name] == ["bnjax, drop-in, remat", "bnjax, relu inside, remat"]
    counts = []
    for name in ("bnjax, drop-in", "bnjax, drop-in, remat"):
        made, _, _ = compiled.compile_once(programs[name], CPU, jax.devices()[:1])
        counts.append(compiled.facts(made, CPU)["convolutions"])
    assert counts[0] == counts[1] > 0  # none is computed again


def test_the_program_of_a_target_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    task = {"target": "gpu:h100", "dtype": "bfloat16", "repeats": 1, "memory_switch": False, "contenders": []}
    (said,) = compiled.main(task)
    assert "pip install 'jax[cuda12]'" in said["skipped"]
