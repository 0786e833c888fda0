"""The study of recurrent networks, beside numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.fitting import Step
from experiments.studies import recurrent


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loss_in_numpy(params, x, y):
    """The cross entropy after an LSTM without a norm, written out."""
    cell, head = (
        params["RNN_0"]["cell"] if "cell" in params.get("RNN_0", {}) else params["LSTMCell_0"],
        params["Dense_0"],
    )
    h = c = np.zeros((len(x), recurrent.FEATURES))
    for t in range(x.shape[1]):
        z = {g: x[:, t] @ cell[f"i{g}"]["kernel"] + h @ cell[f"h{g}"]["kernel"] + cell[f"h{g}"]["bias"] for g in "ifgo"}
        c = sigmoid(z["f"]) * c + sigmoid(z["i"]) * np.tanh(z["g"])
        h = sigmoid(z["o"]) * np.tanh(c)
    logits = h @ head["kernel"] + head["bias"]
    return (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(y)), y]).mean()


def test_gradients_by_step_are_finite_differences_of_an_lstm_that_is_written_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 2)).astype(np.float32), np.array([1, 0])
    net = recurrent.Reader("none", 4)
    variables = net.init(jax.random.key(0), x, True)
    step = Step(jnp.array(0), variables, jnp.asarray(x), jnp.asarray(y), jnp.array(0.0), None, {})
    found = recurrent.gradients_by_step(net, step)
    params, slopes = jax.tree.map(lambda t: np.asarray(t, np.float64), variables["params"]), np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        moved = np.zeros(x.shape)
        moved[at] = 1e-4
        above, below = (loss_in_numpy(params, x + sign * moved, y) for sign in (1, -1))
        slopes[at] = (above - below) / 2e-4
    np.testing.assert_allclose(found, np.sqrt((slopes**2).sum((0, 2))), rtol=1e-4)


def test_the_class_of_a_sequence_is_its_first_symbol():
    (x, y), (held_out, classes) = recurrent.sequences(5)
    assert x.shape == (recurrent.TRAINING, 5, recurrent.SYMBOLS)
    assert (np.concatenate([x, held_out])[:, 0].argmax(-1) == np.concatenate([y, classes])).all()
    assert (x.sum(-1) == 1).all()
    assert (np.bincount(y) > 0.8 * len(y) / recurrent.SYMBOLS).all()
