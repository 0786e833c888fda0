"""A small trial of `tests.fuzz`, with a seed of its own; and that it finds what is wrong."""

import jax
import jax.numpy as jnp
import pytest

from tests import fuzz
from tests.kit.formulas import ROWS


@pytest.mark.parametrize("part", range(3))
def test_three_hundred_cases(part):
    for program, seed in fuzz.programs(100, seed=100 + part):
        assert list(fuzz.disagreements(program, seed)) == []


def test_another_formula_is_found(monkeypatch):
    monkeypatch.setitem(ROWS, "layer", ROWS["rms"])
    program = fuzz.Program("layer", (4, 6), (4, 1), 1, jnp.float32, "running", 1.0)
    lines = list(fuzz.disagreements(program, 0))
    assert len(lines) >= 4  # a draw may have nothing valid
    assert lines[0].startswith(
        "layer (4, 6) mask (4, 1) axis 1 float32 pivot running mean 1: draw 0 of seed 0 is off by"
    )


def test_masks_of_every_kind_of_shape_are_drawn():
    drawn = [program for program, _ in fuzz.programs(10000, seed=0)]
    assert len({program[1:5] for program in drawn}) > 1000
    assert {program.name for program in drawn} == set(ROWS)
    kinds = {tuple(m == s for m, s in zip(p.mask, p.shape, strict=True)) for p in drawn if p.mask}
    assert len(kinds) == 4 + 8 + 16  # of rank 2, 3 and 4
    assert jax.numpy.bfloat16 in {p.dtype for p in drawn}
