"""docs/guide/devices.md and accumulation.md: their snippets run in order as they stand, and give what they say."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.kit import references

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide"


def run(page, devices=4):
    """What a page has defined at its end, run on so many devices."""
    some = jax.devices()[:devices]
    found = {"__name__": "page"}
    snippets = re.findall(r"^```python\n(.*?)^```$", (GUIDE / page).read_text(), re.MULTILINE | re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: some)
        for number, code in enumerate(snippets):
            exec(compile(code, f"docs/guide/{page}, Python block {number}", "exec"), found)
    return found


@pytest.fixture(scope="module")
def names():
    return run("devices.md")


def normalized(x, slices=1):
    ones, zeros = np.ones(x.shape[-1]), np.zeros(x.shape[-1])
    parts = (references.batch_norm(part, part, ones, zeros).y for part in np.split(np.asarray(x), slices))
    return np.concatenate(list(parts))


def test_layouts_do_what_the_table_says(names):
    x = names["x"]
    for y, slices in (("y", 1), ("y_mapped", 1), ("y_alone", 4), ("y_groups", 2), ("y_model", 1)):
        np.testing.assert_allclose(names[y], normalized(x, slices), rtol=1e-5, atol=2e-6)
    want = references.moments(x, 0)
    for new in (names["new"], names["new_mapped"]):
        np.testing.assert_allclose(new.mean, 0.01 * want.mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(new.var, 0.99 + 0.01 * want.var, rtol=1e-6)
    assert names["y_model"].sharding.spec == jax.P("data", "model")


def test_the_pool_has_the_variance_between_devices(names):
    parts = [references.moments(part, 0) for part in np.split(np.asarray(names["x"]), 4)]
    means = np.stack([0.01 * m.mean for m in parts])
    own = np.stack([0.99 + 0.01 * m.var for m in parts])
    np.testing.assert_allclose(names["pooled"]["mean"], means.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(names["pooled"]["var"], own.mean(0) + means.var(0), rtol=1e-6)


def test_accumulation_steps_once():
    names = run("accumulation.md")
    params = names["variables"]["params"]["layers_0"]
    h = references.wide(names["x"]) @ references.wide(params["kernel"]) + references.wide(params["bias"])
    want = references.moments(h, 0)
    [new] = names["batch_stats"].values()
    np.testing.assert_allclose(new["mean"], 0.01 * want.mean, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(new["var"], 0.99 + 0.01 * want.var, rtol=1e-5)
    stats = nnx.state(names["model"], nnx.BatchStat)["norm"]
    assert not np.allclose(stats["mean"][...], 0)
    assert not np.allclose(stats["var"][...], 1)
