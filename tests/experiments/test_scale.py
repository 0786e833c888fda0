"""What a step sends does not grow with the devices, and the tables say if it did."""

import jax
import pytest

from experiments.config import Config, ParallelConfig, TrainConfig
from experiments.scale import __main__ as scale
from experiments.scale import compiled
from experiments.training.layouts import make_layout

# Of one block of a ResNet: the parameters of its convolutions and its last layer, and the features of its five norms.
WEIGHTS, FEATURES = 7 * 7 * 3 * 4 + 4 * 4 + 3 * 3 * 4 * 4 + 4 * 16 + 4 * 16 + 16 * 10 + 10, (4, 4, 4, 16, 16)


def facts(layout, sync, devices):
    parallel = ParallelConfig(layout=layout, sync=sync, group_size=2 if sync == "group" else None)
    config = Config(parallel=parallel, train=TrainConfig(batch_size=compiled.EACH * devices))
    found = compiled.facts("one block", make_layout(config, jax.devices()[:devices]))
    return found["counts"], found["operand_bytes"]


def test_what_is_sent_does_not_grow_with_the_devices():
    """And it is what it must be: every gradient and every mean and variance once, and four numbers."""
    counts, operand_bytes = facts("jit", "global", 4)
    assert (counts, operand_bytes) == facts("jit", "global", 8)
    assert operand_bytes == 4 * (WEIGHTS + 2 * sum(FEATURES) + 2 * sum(FEATURES) + 4)
    assert counts["all-reduce"] >= 2 * len(FEATURES)


def test_groups_send_as_much_however_many_they_are():
    assert facts("shard_map", "group", 4) == facts("shard_map", "group", 8)


TEXT = """
  %p = f32[8,2]{1,0} parameter(0)
  %q = bf16[4] parameter(1)
  %all-reduce.1 = (f32[8,2], bf16[4]) all-reduce(%p, %q), replica_groups={{0,1}}
  %s = (f32[8], f32[16]) all-gather-start(%g), dimensions={0}
  %d = f32[16] all-gather-done(%s)
  %g = f32[8] get-tuple-element(%t), index=0
"""


def test_collectives_are_found_in_the_text():
    assert compiled.collectives(TEXT) == ({"all-reduce": 1, "all-gather": 1}, 64 + 8 + 32)


def rows(*operand_bytes):
    common = {"layout": "jit", "sync": "global", "counts": {"all-reduce": 2}, "temporary_bytes": 0, "seconds": 1}
    return [{**common, "devices": 4**i, "operand_bytes": n} for i, n in enumerate(operand_bytes, start=1)]


def test_growth_is_said():
    assert scale.growth(rows(8, 8, 8)) == []
    (sentence,) = scale.growth(rows(8, 8, 10))
    assert sentence == "`jit`, global: operand bytes 8 for 4 devices, 10 for 64."
    assert scale.table(rows(8, 10))[-1] == "`jit`, global: operand bytes 8 for 4 devices, 10 for 16."


def test_the_document_is_written_from_a_process_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scale, "DOCUMENT", tmp_path / "docs" / "scale.md")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    argv = ["--model", "one block", "--targets", "cpu:2", "--syncs", "device", "--layouts", "jit", "--write"]
    scale.main([*argv, f"--found={tmp_path}/found.json"])
    said = capsys.readouterr().out
    assert said.startswith("cpu:2: each device, `jit`; 2; ")
    assert "What is sent is the same for every number of devices." in (tmp_path / "docs" / "scale.md").read_text()
    monkeypatch.setattr(scale, "compiled", None)  # what is found is not compiled again
    scale.main([*argv, f"--found={tmp_path}/found.json"])
    assert capsys.readouterr().out == said


def test_what_cannot_be_compiled_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scale, "compiled", lambda python, task: {"skipped": f"{task['target']}: no compiler"})
    argv = ["--targets", "tpu:v5e:2x2", "--syncs", "global", "--layouts", "jit", f"--found={tmp_path}/found.json"]
    with pytest.raises(SystemExit):
        scale.main(argv)
    assert "Left out: tpu:v5e:2x2: no compiler" in capsys.readouterr().out
