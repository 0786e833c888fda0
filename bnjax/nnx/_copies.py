"""A module with other values in some of its parameters, for one call, while the module itself stays as it is.

Writing the values into the module and restoring the old ones would be wrong. Another thread would see them, and a plain
JAX transformation that closes over the module would leave its tracers there, or refuse.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from jax import Array

from bnjax.nnx._unstable import OF_FLAX

Named = list[tuple[tuple[Any, ...], nnx.Param]]  # with their paths


@contextlib.contextmanager
def with_values(module: nnx.Module, parameters: Named, values: list[Array]) -> Iterator[nnx.Module]:
    """`module` with other values of `parameters`: a shallow copy of the modules and containers on the way to them.

    All else is the same object as in `module`: other modules, and other Variables, which a call writes as ever. What is
    set on a copied module inside (what it sows, say) is set on the module itself at the end, unless there is an error.
    """
    new = {id(p): p.copy(value) for (_, p), value in zip(parameters, values, strict=True)}
    copies: dict[int, tuple[Any, Any]] = {}  # by the id of what is copied, which is held here, so that ids stay unique
    copy = _copied(module, new, copies)
    changed = [
        (own, other, dict(vars(other))) for own, other in copies.values() if own is not other and _is_module(own)
    ]
    yield copy
    originals = {id(new[id(p)]): p for _, p in parameters} | {id(other): own for own, other in copies.values()}
    for own, other, before in changed:
        _set_what_was_set(own, other, before, originals)


def _is_module(node: Any) -> bool:
    return isinstance(node, nnx.Pytree)


def _copied(node: Any, new: dict[int, nnx.Variable], copies: dict[int, tuple[Any, Any]]) -> Any:
    """`node` with the Variables of `new` in it, by the id of the old; `node` itself where there are none."""
    if isinstance(node, nnx.Variable):
        return new.get(id(node), node)
    if id(node) not in copies:
        if _is_module(node):
            copy = object.__new__(type(node))
            copies[id(node)] = node, copy  # before its children, which may hold it
            other = {name: _copied(child, new, copies) for name, child in _children(node).items()}
            if all(child is vars(node)[name] for name, child in other.items()):
                copy = node
            else:
                vars(copy).update(vars(node) | other)
        else:
            children, structure = _contents(node)
            others = [child if child is node else _copied(child, new, copies) for child in children]
            same = all(a is b for a, b in zip(children, others, strict=True))
            copy = node if same else structure.unflatten(others)
        copies[id(node)] = node, copy
    return copies[id(node)][1]


def _contents(node: Any) -> tuple[list[Any], Any]:
    """The direct children of a container, and its structure. A leaf is its own child."""
    return jax.tree.flatten(node, is_leaf=lambda t: t is not node)


def _children(module: Any) -> dict[str, Any]:
    """The attributes that may hold Variables: JAX knows which, except of a module that is no pytree."""
    data = _contents(module)[0]
    if len(data) == 1 and data[0] is module:
        return dict(vars(module))
    ids = set(map(id, data))
    return {name: value for name, value in vars(module).items() if id(value) in ids}


def _set_what_was_set(own: Any, other: Any, before: dict[str, Any], originals: dict[int, Any]) -> None:
    """Gives `own` the attributes that its copy `other` got or lost since `before`."""
    after = {name: value for name, value in vars(other).items() if not name.startswith(OF_FLAX)}
    for name in [name for name in before if name not in vars(other)]:
        delattr(own, name)
    for name, value in after.items():
        if name in before and value is before[name]:
            continue
        if name in _children(other):
            value = nnx.data(jax.tree.map(lambda t: originals.get(id(t), t), value, is_leaf=_is_whole))
        setattr(own, name, value)


def _is_whole(node: Any) -> bool:
    return isinstance(node, nnx.Variable) or _is_module(node)
