"""One call in training, by each of the library's three faces: the output and the new running state."""

from flax import nnx

from bnjax import Moments, batch_norm
from bnjax import linen as bl
from bnjax import nnx as bx


def core(x, where, scale, bias, running, **options):
    return batch_norm(x, running, scale, bias, where=where, **options)


def linen(x, where, scale, bias, running, **options):
    layer = bl.BatchNorm(use_running_average=False, **options)
    params, stats = {"scale": scale, "bias": bias}, {"mean": running.mean, "var": running.var}
    y, new = layer.apply({"params": params, "batch_stats": stats}, x, mask=where, mutable="batch_stats")
    return y, Moments(running.count, new["batch_stats"]["mean"], new["batch_stats"]["var"])


def nnx_(x, where, scale, bias, running, **options):
    layer = bx.BatchNorm(x.shape[-1], **options, rngs=nnx.Rngs(0))
    for name, value in {"scale": scale, "bias": bias, "mean": running.mean, "var": running.var}.items():
        getattr(layer, name).set_value(value)
    y = layer(x, mask=where)
    return y, Moments(running.count, layer.mean[...], layer.var[...])


APIS = {"core": core, "linen": linen, "nnx": nnx_}
