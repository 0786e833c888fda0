"""The study of examples and widths: which examples a seed trains with."""

import jax
import numpy as np

from experiments.lab.perceptron import Perceptron
from experiments.models.norms import NormChoice
from experiments.studies import data_width


def test_a_seed_trains_with_so_many_examples_that_it_chooses_for_itself(monkeypatch):
    seen = []

    def fit(net, train, key, optimizer, **settings):
        seen.append([np.asarray(part) for part in train])
        return net.init(key, train[0], True), None

    monkeypatch.setattr(data_width, "fit", fit)
    x = np.arange(20, dtype=np.float32)[:, None]
    train = (x, np.arange(20) % 10)
    net = Perceptron(NormChoice("none"), 1, width=4)
    for seed in (0, 1):
        data_width.trained(net, train, train, 7, jax.numpy.array(seed), 0.1)
    for chosen, classes in seen:
        assert len(set(chosen[:, 0])) == 7
        np.testing.assert_array_equal(classes, chosen[:, 0] % 10)
    assert set(seen[0][0][:, 0]) != set(seen[1][0][:, 0])
