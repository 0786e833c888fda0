"""The contenders on PyTorch, in both of its layouts; on a GPU also compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.contenders import EPSILON, GROUPS, MOMENTUM, library
from experiments.bench.work import Case, Tensors

Run = Callable[[], Any]


class Torch(NamedTuple):
    """A layout of PyTorch, eager or compiled."""

    name: str
    channels_last: bool
    compiled: bool = False


EAGER = (Torch("PyTorch, channels last", True), Torch("PyTorch, channels first", False))
COMPILED = (Torch("torch.compile, channels last", True, compiled=True),)


def contenders(torch: Any) -> tuple[Torch, ...]:
    return EAGER + COMPILED if torch.cuda.is_available() else EAGER


def build(how: Torch, case: Case, operands: Tensors) -> Run | None:
    """The work as a call without arguments, or `None` where the layout makes no difference or there is no such norm."""
    torch = library("torch")
    rows = case.work.norm in ("layer", "rms") or len(case.shape) == 2  # no layout to choose
    if rows and not how.channels_last:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def tensor(x: Any) -> Any:
        if x is None:
            return None
        t = torch.from_numpy(np.array(x, np.float32)).to(device, getattr(torch, case.dtype))
        return t if rows else laid_out(torch, t, how.channels_last)

    x, residual, dy = map(tensor, operands)
    scale, var = torch.ones(2, case.features, device=device)
    bias, mean = torch.zeros(2, case.features, device=device)
    if case.work.norm in ("layer", "rms"):  # these take parameters in the dtype of the input alone
        scale, bias = scale.to(x.dtype), bias.to(x.dtype)
    forward = partial(_forward, torch, case, mean=mean, var=var)
    if how.compiled:
        forward = torch.compile(forward)
    if not case.work.training:
        return lambda: torch.no_grad()(forward)(x, scale, bias, residual)
    wanted = [t.requires_grad_() for t in ((x, scale, bias) if case.work.norm != "rms" else (x, scale))]
    wanted += [] if residual is None else [residual.requires_grad_()]

    def both() -> Any:
        y = forward(x, scale, bias, residual)
        return y.detach(), torch.autograd.grad(y, wanted, dy)

    return both


def laid_out(torch: Any, x: Any, channels_last: bool) -> Any:
    """From channels last to PyTorch's order of axes, in memory as asked. A sequence is an image of width 1."""
    x = x.movedim(-1, 1)
    if x.ndim == 3 and channels_last:
        x = x.unsqueeze(-1)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _forward(torch: Any, case: Case, x: Any, scale: Any, bias: Any, residual: Any, mean: Any, var: Any) -> Any:
    f = torch.nn.functional
    if case.work.norm == "batch":
        y = f.batch_norm(x, mean, var, scale, bias, case.work.training, 1 - MOMENTUM, EPSILON)
    elif case.work.norm == "group":
        y = f.group_norm(x, GROUPS, scale.to(x.dtype), bias.to(x.dtype), EPSILON)
    elif case.work.norm == "rms":
        y = f.rms_norm(x, (case.features,), scale, EPSILON)
    else:
        y = f.layer_norm(x, (case.features,), scale, bias, EPSILON)
    if residual is not None:
        y += residual  # in place, as in torchvision's models
    return f.relu(y, inplace=True) if case.work.relu else y


def wait(torch: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
