"""What a type checker says to users: one run over right and wrong lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The end of a line that is wrong names what mypy says of it; all other lines are right.
CODE = """
import jax
import jax.numpy as jnp
from flax import nnx

import bnjax
import bnjax.linen as bn
import bnjax.nnx as bx

rngs = nnx.Rngs(0)
x = jnp.ones((2, 3))
running = bnjax.Moments.empty((3,))

bx.LayerNorm(32, epsilon=1e-3, rngs=rngs)
bx.LayerNorm(32, epsilonn=1e-3, rngs=rngs)  # call-arg
bx.LayerNorm(32)  # call-arg
bx.GroupNorm(32, None, 4, rngs=rngs)
bx.GroupNorm(32, num_groups="4", rngs=rngs)  # arg-type
bx.DynamicTanh(32, alpha_init=1.0, use_bias=False, axis=(-2, -1), rngs=rngs)
bx.DynamicTanh((4, 8), alpha_init=nnx.initializers.ones, rngs=rngs)
bx.DynamicTanh(32, alphaa=1.0, rngs=rngs)  # call-arg
bx.DynamicTanh(32)  # call-arg
bx.DynamicTanh(32, jnp.float32, rngs=rngs)  # call-arg
bx.BatchRenorm(32, r_max=lambda step: 1.0 + step, momentum=0.9, use_running_average=None, rngs=rngs)
bx.BatchRenorm(32, rmax=2.0, rngs=rngs)  # call-arg
bx.WeightNorm(nnx.Linear(2, 3, rngs=rngs), epsilon=1e-6, rngs=rngs)
bx.ScaledWeightStandardization(nnx.Linear(2, 3, rngs=rngs), epsilonn=1e-6, rngs=rngs)  # call-arg
bx.SpectralNorm(nnx.Linear(2, 3, rngs=rngs), steps=2, rngs=rngs)  # call-arg
bx.LayerNormLSTMCell(2, 3, epsilon=1e-3, rngs=rngs)
bx.BatchNormLSTMCell(2, 3, max_steps=4, epsilon=1e-3, dtype=jnp.bfloat16, rngs=rngs)
bx.BatchNormLSTMCell(2, 3, max_steps=4, epsilonn=1e-3, rngs=rngs)  # call-arg

bx.BatchNorm(3, momentum=None, pivot="sample", rngs=rngs).pivot
bx.BatchNorm(3, pivot="smaple", rngs=rngs)  # arg-type
bn.BatchNorm(momentum=None, pivot=None)
bn.BatchNorm(momentun=0.9)  # call-arg
bn.BatchNorm(pivot="batch")  # arg-type
bn.BatchNorm(track_running_stats=False)
bx.BatchNorm(3, track_runing_stats=False, rngs=rngs)  # call-arg
bn.DynamicTanh(alpha_init=0.5)
bn.DynamicTanh(alphaa=0.5)  # call-arg
bnjax.batch_norm(x, running, pivot="batch")  # arg-type
bnjax.layer_norm(x, pivot="running")  # arg-type

bn.make_norm("group", num_groups=4)
bn.make_norm("bacth")  # arg-type
bx.make_norm("group", 32, num_groups=4, rngs=rngs)
bx.make_norm("bacth", 32, rngs=rngs)  # arg-type
bn.make_norm("layer_norm")
bx.make_norm("none", 32, rngs=rngs)
bnjax.batch_norm(x, running, activation="gelu")
bnjax.batch_norm(x, running, activation=jax.nn.tanh)
bnjax.batch_norm(x, running, activation="swish")  # arg-type
bnjax.normalize(x, running, activation="Relu")  # arg-type
bn.LayerNorm(activation="silu")
bn.LayerNorm(activation="swish")  # arg-type
bx.GroupNorm(32, activation="relu", rngs=rngs)
bx.GroupNorm(32, activation=nnx.PReLU(), rngs=rngs)
bx.GroupNorm(32, activation="tanh", rngs=rngs)  # arg-type
bnjax.batch_renorm(x, running, tracks="var")
bnjax.batch_renorm(x, running, tracks="variance")  # arg-type
bx.WeightStandardization(nnx.Linear(2, 3, rngs=rngs), epsilon_to="std", rngs=rngs)  # arg-type
"""


def test_a_type_checker_finds_the_wrong_lines_and_no_others(tmp_path):
    (tmp_path / "user.py").write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir=cache", "user.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    lines = CODE.splitlines()
    want = [f"{n}: {lines[n - 1].split('  # ')[1]}" for n in range(1, len(lines) + 1) if "  # " in lines[n - 1]]
    found = re.findall(r"^user.py:(\d+): error: .*\[(.*)\]$", run.stdout, re.MULTILINE)
    assert [f"{n}: {code}" for n, code in found] == want, run.stdout + run.stderr
