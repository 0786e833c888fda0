"""The modules of PyTorch and Keras of the cases, with numbers at random. Needs PyTorch, or Keras."""

import os

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")


def trained(arrays, seed=0):
    """Values for arrays by name, as after a training: matrices as they were drawn."""
    rng = np.random.default_rng(seed)
    new = {}
    for name, value in arrays.items():
        if name.endswith("num_batches_tracked"):
            new[name] = np.asarray(7, value.dtype)
        elif "var" in name:
            new[name] = rng.uniform(0.5, 2, value.shape).astype(value.dtype)
        elif value.ndim < 2:
            about = name.endswith(("weight", "gamma"))
            new[name] = (rng.normal(size=value.shape) * 0.3 + about).astype(value.dtype)
        else:
            new[name] = value
    return new


def torch_module(build, seed=0):
    """A module of PyTorch, as after a training."""
    import torch

    torch.manual_seed(seed)
    module = build(torch.nn)
    arrays = trained({name: value.numpy() for name, value in module.state_dict().items()})
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    return module.eval()


def torch_output(module, x):
    """What a module makes of an input with channels last; channels last."""
    import torch

    images = x.ndim > 3 or (x.ndim == 3 and type(module).__name__ == "Conv1d")
    x = np.ascontiguousarray(np.moveaxis(x, -1, 1)) if images else x
    with torch.no_grad():
        y = module(torch.from_numpy(x)).numpy()
    return np.moveaxis(y, 1, -1) if y.ndim > 3 or (images and y.ndim == 3) else y


def torch_arrays(module):
    """The arrays of a module by name."""
    return {name: value.numpy() for name, value in module.state_dict().items()}


def keras_model(build, x, seed=0):
    """A model of Keras, as after a training."""
    import keras

    keras.utils.set_random_seed(seed)
    layers = build(keras.layers)
    model = keras.Sequential(layers if isinstance(layers, list) else [layers])
    model(x)
    train_keras(model)
    return model


def train_keras(model):
    """Other values for the weights of a model."""
    arrays = trained({v.path: np.asarray(v.value) for v in model.weights})
    for v in model.weights:
        v.assign(arrays[v.path])
