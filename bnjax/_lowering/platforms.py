"""A function that compilers want written in different ways, as one primitive.

JAX's own switch, `lax.platform_dependent`, is a `cond`: each transformation goes through all of its branches. Here the
function is traced once, and what a platform has of its own is traced when a program is compiled for that platform.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from bnjax._unstable import Primitive, Zero, ad, as_function, batching, lower_fun, register_lowering

Flat = Callable[..., Any]  # of flat arguments; its results are flat, too
PLATFORMS = ("cpu", "cuda")  # that have something of their own


@dataclasses.dataclass(frozen=True, eq=False)
class Ways:
    """A traced function, and for some platforms another way to write it. A static parameter, compared by identity."""

    default: Any
    own: dict[str, Flat]
    x64: bool = dataclasses.field(default_factory=lambda: bool(jax.config.read("jax_enable_x64")))

    def of(self, platform: str) -> Flat:
        """What a platform is given. It is traced with or without x64 as the function was, whatever is set by then."""
        f = self.own.get(platform, as_function(self.default))

        def as_traced(*args: Any) -> Any:
            with jax.enable_x64(self.x64):
                return f(*args)

        return as_traced

    def mapped(self, args: Sequence[Any], dims: Sequence[Any]) -> "Ways":
        """The ways of `vmap` of the function; the results are mapped along their first axes."""
        mapped = partial(jax.vmap, in_axes=tuple(dims))
        default = jax.make_jaxpr(mapped(as_function(self.default)))(*args)
        return Ways(default, {platform: mapped(f) for platform, f in self.own.items()})


def traced(f: Callable[..., Any], args: Any, own: dict[str, Callable[..., Any]]) -> tuple[Ways, Any]:
    """The ways of `f(*args)` and of what platforms have of their own; and the tree of its results."""
    if unknown := set(own) - set(PLATFORMS):  # or they would be passed over in silence
        raise ValueError(f"{sorted(unknown)} have no lowering of their own yet; add them to `PLATFORMS`.")
    flat, tree = jax.tree.flatten(args)

    def flattened(f: Callable[..., Any]) -> Flat:
        return lambda *flat: jax.tree.leaves(f(*jax.tree.unflatten(tree, flat)))

    default, shape = jax.make_jaxpr(lambda *flat: f(*jax.tree.unflatten(tree, flat)), return_shape=True)(*flat)
    return Ways(default, {platform: flattened(g) for platform, g in own.items()}), jax.tree.structure(shape)


def by_platform(f: Callable[..., Any], *args: Any, **own: Callable[..., Any]) -> Any:
    """`f(*args)`; on a platform that is named in `own`, `own[platform](*args)`, which must compute the same.

    Its tangent is that of `f` on every platform, and so is what runs eagerly.
    """
    ways, tree = traced(f, args, own)
    return jax.tree.unflatten(tree, by_platform_p.bind(*jax.tree.leaves(args), ways=ways))


def of_some(f: Flat, args: Sequence[Any], places: Sequence[int]) -> Flat:
    """`f` as a function of its arguments at `places`; the others are those of `args`."""

    def of(*some: Any) -> Any:
        given = dict(zip(places, some, strict=True))
        return f(*(given.get(i, value) for i, value in enumerate(args)))

    return of


def tangent_of(f: Flat, primals: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
    """The tangent of a function's results, where only some of its arguments move."""
    moving = [i for i, t in enumerate(tangents) if type(t) is not Zero]
    of = of_some(f, primals, moving)
    return list(jax.jvp(of, [primals[i] for i in moving], [tangents[i] for i in moving])[1])


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, ways: Ways) -> tuple[Any, Any]:
    return by_platform_p.bind(*primals, ways=ways), tangent_of(as_function(ways.default), primals, tangents)


def _batch(args: Sequence[Any], dims: Sequence[Any], *, ways: Ways) -> tuple[Any, Any]:
    y = by_platform_p.bind(*args, ways=ways.mapped(args, dims))
    return y, [0] * len(y)


by_platform_p = Primitive("by_platform")
by_platform_p.multiple_results = True
by_platform_p.def_impl(lambda *args, ways: as_function(ways.default)(*args))
by_platform_p.def_abstract_eval(lambda *_, ways: ways.default.out_avals)
ad.primitive_jvps[by_platform_p] = _jvp
batching.primitive_batchers[by_platform_p] = _batch
for _platform in (None, *PLATFORMS):
    register_lowering(
        by_platform_p,
        lower_fun(lambda *args, ways, on=_platform or "": ways.of(on)(*args), multiple_results=True),
        platform=_platform,
    )
