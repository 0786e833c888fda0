"""The products of a traced program, as papers count them: of convolutions and matrices, with the zeros of a padding."""

import math
from typing import Any


def products(jaxpr: Any) -> int:
    """How many multiplications the convolutions and matrix products of a jaxpr have; loops as often as they run.

    Raises:
      ValueError: a loop whose length is not known.

    >>> import jax
    >>> a, b = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((2, 3), (3, 5)))
    >>> products(jax.make_jaxpr(lambda a, b: a @ b)(a, b).jaxpr)
    30
    """
    return sum(_own(equation) + _inner(equation) for equation in jaxpr.eqns)


def _own(equation: Any) -> int:
    shapes = [v.aval.shape for v in equation.invars]
    if equation.primitive.name == "conv_general_dilated":
        outputs = equation.params["dimension_numbers"].rhs_spec[0]
        kernel = shapes[1]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[outputs]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][a] for a in contracted)
    return 0


def _inner(equation: Any) -> int:
    if equation.primitive.name == "cond":
        return max(products(branch.jaxpr) for branch in equation.params["branches"])
    found = [getattr(value, "jaxpr", value) for value in equation.params.values()]
    count = sum(products(jaxpr) for jaxpr in found if hasattr(jaxpr, "eqns"))
    if count and equation.primitive.name == "while":
        raise ValueError("The program has a loop whose length is not known; count its body by itself.")
    return count * equation.params["length"] if equation.primitive.name == "scan" else count
