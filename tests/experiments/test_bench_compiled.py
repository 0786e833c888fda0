"""What is read from compiled programs, against programs whose traffic and communication can be counted by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.bench import compiled, rows
from experiments.measure import hlo
from experiments.measure.explain import explain
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


SLICED = """HloModule sliced

%fused (p.1: f32[8], p.0: bf16[8,64]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(1)
  %p.0 = bf16[8,64]{1,0} parameter(0)
  %wide = f32[8,64]{1,0} convert(%p.0)
  %first = f32[8,1]{1,0} slice(%wide), slice={[0:8], [0:1]}
  %flat = f32[8]{0} bitcast(%first)
  ROOT %d = f32[8]{0} subtract(%p.1, %flat)
}

%whole (p.0: bf16[8,64]) -> (f32[8,1], f32[8,64]) {
  %p.0 = bf16[8,64]{1,0} parameter(0)
  %wide = f32[8,64]{1,0} convert(%p.0)
  %first = f32[8,1]{1,0} slice(%wide), slice={[0:8], [0:1]}
  ROOT %both = (f32[8,1]{1,0}, f32[8,64]{1,0}) tuple(%first, %wide)
}

ENTRY %main (x: bf16[8,64], mean: f32[8]) -> f32[8] {
  %x = bf16[8,64]{1,0} parameter(0)
  %mean = f32[8]{0} parameter(1)
  %a = f32[8]{0} fusion(%x, %mean), kind=kLoop, calls=%fused
  %b = (f32[8,1]{1,0}, f32[8,64]{1,0}) fusion(%x), kind=kLoop, calls=%whole
  ROOT %c = f32[8]{0} copy(%a)
}
"""


def test_an_operand_that_is_only_sliced_counts_as_its_slice():
    a = 8 * 2 + 8 * 4 + 8 * 4  # x[:, :1] in bfloat16, though it is sliced after a cast; the mean; the result
    b = 8 * 64 * 2 + 8 * 4 + 8 * 64 * 4  # all of x is used, too
    assert hlo.fusion_bytes(SLICED) == a + b
    assert [(i.name, size) for i, size in hlo.traffic(SLICED)] == [("a", a), ("b", b), ("c", 2 * 8 * 4)]


TPU = """HloModule tpu

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %start = (bf16[8,128]{1,0:T(8,128)S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %sum = f32[8]{0:T(256)} fusion(%x), kind=kLoop, calls=%f, backend_config={"window":{"estimated_cycles":"100"}}
  %done = bf16[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %y = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%sum, %done), kind=kLoop, calls=%g, backend_config={"estimated_cycles":"30"}
  ROOT %z = bf16[8,128]{0,1:T(8,128)(2,1)} fusion(%y, %sum), kind=kLoop, calls=%h, backend_config={"estimated_cycles":"70"}
}
"""  # noqa: E501


def test_the_cycles_and_kernels_of_a_tpu_program_are_those_of_its_entry():
    text = TPU.replace(
        "ENTRY", '%f (p: f32[]) -> f32[] {\n  %n = f32[] negate(%p), c={"estimated_cycles":"9"}\n}\n\nENTRY'
    )
    assert hlo.estimated_cycles(text) == 200
    assert [i.name for i in hlo.kernels(text)] == ["start", "sum", "y", "z"]


def test_kernels_without_a_counterpart_are_found():
    other = TPU.replace("f32[8]{0:T(256)} fusion", "f32[8,1]{1,0} fusion").replace('"30"', '"50"')
    found = explain(TPU, other)
    assert (found["unit"], found["total"]) == ("cycles", [200, 220])
    # Two fusions read what was summed in another shape: which of all is told by shapes alone.
    want = [("fusion", ("bf16[8,128]",), ("f32[8]",), 1, 100.0, 0.5),
            ("fusion", ("bf16[8,128]", "f32[8]"), ("bf16[8,128]",), 2, 100.0, 0.5)]  # fmt: skip
    assert [tuple(row.values()) for row in found["without"][0]] == want
    assert [row["cost"] for row in found["without"][1]] == [120, 100]
    assert found["common"] == [0, 0]
    assert explain(TPU, TPU) == {"unit": "cycles", "total": [200, 200], "common": [200, 200], "without": [[], []]}
    assert explain(SLICED, SLICED.replace(" copy(", " negate("))["without"][0] == [
        {"kind": "copy", "operands": ("f32[8]",), "results": ("f32[8]",), "count": 1, "cost": 64.0,
         "share": 64 / sum(size for _, size in hlo.traffic(SLICED))},
    ]  # fmt: skip


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


def settings(memory_switch=False, devices=1, blocks=1):
    return rows.Settings("float32", devices, blocks, memory_switch)


def steps(memory_switch=False):
    """The step programs of a ResNet of one block, by contender."""
    made = rows.step_programs("batch norm", "step", settings(memory_switch), examples=16, size=32, **TINY)
    return {p.contender: p for p in made}


def test_a_step_is_compiled_for_devices_and_not_run():
    on = jax.devices()
    programs = steps()
    assert list(programs) == ["flax.linen", "bnjax, drop-in", "bnjax, relu inside"]
    chosen = [programs["flax.linen"], programs["bnjax, relu inside"]]
    records = list(compiled.measure(chosen, CPU, on, repeats=1))
    assert [r["contender"] for r in records] == ["flax.linen", "bnjax, relu inside"]
    for r in records:
        assert r["devices"] == len(on)
        assert r["convolutions"] >= 3 * 2  # of those that are no matrix products: forward, and two gradients
        assert r["collectives"] == r["all_reduces"] > 5  # each of five norms needs one at least
        assert r["kernels"] > r["convolutions"]
        assert r["estimated_cycles"] == 0  # which only a TPU's compiler gives
        assert r["temporary_megabytes"] > 0
        assert r["trace_seconds"] > 0
        assert r["compile_seconds"] > 0
    alone, _, _ = compiled.compile_once(programs["flax.linen"], on[:1])
    assert compiled.facts(alone, CPU)["all_reduces"] == 0


def test_the_memory_switch_computes_no_convolution_again():
    programs = steps(memory_switch=True)
    assert [name for name in programs if "remat" in name] == ["bnjax, drop-in, remat", "bnjax, relu inside, remat"]
    counts = []
    for name in ("bnjax, drop-in", "bnjax, drop-in, remat"):
        made, _, _ = compiled.compile_once(programs[name], jax.devices()[:1])
        counts.append(compiled.facts(made, CPU)["convolutions"])
    assert counts[0] == counts[1] > 0  # none is computed again


def test_every_norm_of_flax_has_rows():
    flax = {n for n, c in vars(nn.normalization).items() if isinstance(c, type) and n.endswith("Norm")}
    assert {name for name, _ in rows.CLASSES.values()} == flax
    alone = {a.norm for a in rows.ALONE}
    assert alone == set(rows.CLASSES)
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    assert [row.name for row in rows.chosen(("encoder", "RMS norm, 16"))] == [
        "RMS norm, 16·512·768", "encoder, layer norm", "encoder, RMS norm",
    ]  # fmt: skip


@pytest.mark.parametrize("norm", ["batch norm", "group norm", "spectral norm"])
def test_programs_of_a_row_compute_the_same(norm):
    weights = norm in rows.OF_WEIGHTS
    alone = rows.Alone(norm, (4, 32) if weights else (2, 2, 2, 32), relu=not weights, residual=not weights)
    programs = list(alone.programs(alone.name, settings()))
    assert [p.contender for p in programs] == ["flax.linen", "bnjax, drop-in", "bnjax, relu inside"][: 3 - weights]
    rng = np.random.default_rng(0)
    operands = jax.tree.map(lambda t: jnp.asarray(rng.uniform(0.5, 2, t.shape), t.dtype), programs[0].operands)
    want = jax.jit(programs[0].make())(*operands)
    for program in programs[1:]:
        got = jax.jit(program.make())(*operands)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


ONE_BLOCK = partial(rows.step_programs, examples=1, size=32, stages=(1,), filters=32)


@pytest.mark.parametrize(
    ("programs", "norms"),
    [(rows.encoder_programs, ("layer norm", "RMS norm")), (rows.bottleneck_programs, rows.OF_IMAGES),
     (ONE_BLOCK, rows.OF_IMAGES[1:])],
    ids=["encoder", "bottlenecks", "step"],
)  # fmt: skip
def test_models_take_every_norm_of_theirs(programs, norms):
    for norm in norms:
        shapes = [jax.eval_shape(p.make(), *p.operands) for p in programs(norm, "a model", settings())]
        assert all(made == shapes[0] for made in shapes[1:])
        assert len(shapes) == (2 if "layer norm" in norms else 3)


def test_a_norm_alone_is_compiled_with_a_barrier_and_explained():
    alone = rows.Alone("layer norm", (8, 16))
    programs = list(alone.programs(alone.name, settings()))
    assert "optimization_barrier" in jax.jit(programs[0].make()).lower(*programs[0].operands).as_text()
    flax, ours = compiled.measure(programs, CPU, jax.devices(), repeats=2, explains=True)
    assert flax["devices"] == ours["devices"] == 1
    assert "explained" not in flax
    assert ours["explained"]["unit"] == "bytes"
    assert 0 <= sum(row["share"] for row in ours["explained"]["without"][0]) <= 1


def test_the_program_of_a_target_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (said,) = compiled.main({"target": "gpu:h100"})
    assert "pip install 'jax[cuda12]'" in said["skipped"]
