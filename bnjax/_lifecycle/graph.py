"""A traced program as a graph of values: who makes each, and who uses it.

Calls (`jit`, `remat`, rules of derivatives) are written out in place. What is inside of a loop or a branch stands
behind an `enter` and before a `leave`, so that nothing that crosses these is taken for a plain use.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bnjax._lifecycle.tags import Tag, tag_of

# Of one function, which is run once, with these names of the parameter that holds it.
CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat": "jaxpr",
    "remat2": "jaxpr", "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}  # fmt: skip


class Node(NamedTuple):
    """An operation. `enter` and `leave` stand at the borders of loops and branches, `output` at the end.

    Attributes:
      name: of the primitive.
      params: of the primitive.
      inputs: the values that it uses.
      outputs: the values that it makes.
      inside: the name of the loop or branch that an `enter` or a `leave` is of.
      loop: of an `enter`, a number for each loop that takes one slice of its value at a time.
    """

    name: str
    params: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    inside: str = ""
    loop: int | None = None

    @property
    def tag(self) -> Tag | None:
        """The tag that it puts on a value, if it does that."""
        return tag_of(self.name, self.params)


class Graph:
    """The graph of a program.

    Args:
      closed: what `jax.make_jaxpr(f)(*args)` returned.

    Attributes:
      inputs: the values of the arguments, in order.
      shapes: of all values.
      dtypes: that any value has.
      users: of each value, in the order of the program.
    """

    def __init__(self, closed: Any):
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.dtypes: set[str] = set()
        self.users: dict[int, list[Node]] = defaultdict(list)
        self._makers: dict[int, Node] = {}
        self._numbers = itertools.count()
        self.inputs = self._values(closed.jaxpr.invars)
        outputs = self._written_out(closed.jaxpr, self.inputs)
        self._add(Node("output", {}, tuple(outputs), ()))

    def maker(self, value: int) -> Node | None:
        """What makes a value; nothing makes arguments and constants."""
        return self._makers.get(value)

    def tags(self) -> Iterator[tuple[Node, Tag]]:
        """All operations that tag a value."""
        for node in self._makers.values():
            if (tag := node.tag) is not None:
                yield node, tag

    def _values(self, variables: Sequence[Any]) -> list[int]:
        """New values for variables of a program."""
        numbers = [next(self._numbers) for _ in variables]
        self.dtypes |= {str(getattr(v.aval, "dtype", "")) for v in variables}
        self.shapes |= {n: tuple(getattr(v.aval, "shape", ())) for n, v in zip(numbers, variables, strict=True)}
        return numbers

    def _add(self, node: Node) -> None:
        self._makers |= dict.fromkeys(node.outputs, node)
        for value in node.inputs:
            self.users[value].append(node)

    def _written_out(self, jaxpr: Any, inputs: Sequence[int]) -> list[int]:
        """Adds the operations of a function; returns the values of its results."""
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= dict(zip(jaxpr.constvars, self._values(jaxpr.constvars), strict=True))

        def value_of(variable: Any) -> int:
            return self._values([variable])[0] if hasattr(variable, "val") else known[variable]  # a literal is new

        for equation in jaxpr.eqns:
            arguments = [value_of(v) for v in equation.invars]
            outputs = self._equation(equation, arguments)
            known |= dict(zip(equation.outvars, outputs, strict=True))
        return [value_of(v) for v in jaxpr.outvars]

    def _equation(self, equation: Any, arguments: list[int]) -> list[int]:
        name, params = equation.primitive.name, equation.params
        called = params.get(CALLS[name]) if name in CALLS else None
        if called is not None:
            return self._written_out(getattr(called, "jaxpr", called), arguments)
        outputs = self._values(equation.outvars)
        self._add(Node(name, params, tuple(arguments), tuple(outputs)))
        for body, outer in insides(name, params, arguments):
            self._body(name, body, outer, outputs)
        return outputs

    def _body(self, name: str, body: Any, outer: list[int], outputs: list[int]) -> None:
        """Adds the inside of a loop or a branch, which is given the values `outer`."""
        values, loop, slices = self._values(body.invars), next(self._numbers), {}
        for argument, value in zip(outer, values, strict=False):
            if len(self.shapes[argument]) == len(self.shapes[value]) + 1:
                slices[value] = argument
            self._add(Node("enter", {}, (argument,), (value,), name, loop if value in slices else None))
        for n, result in enumerate(self._written_out(body, values)):
            whole = slices.get(result)  # a slice that is handed on as it is: together they are what was sliced
            if name == "scan" and whole is not None and self.shapes[outputs[n]] == self.shapes[whole]:
                self._add(Node("copy", {}, (whole,), (outputs[n],)))
            else:
                self._add(Node("leave", {}, (result,), (), name))


def insides(name: str, params: Any, arguments: list[int]) -> Iterator[tuple[Any, list[int]]]:
    """The functions that a loop or a branch runs, and which of its arguments they are given: its last ones."""
    if name == "while":
        test, body = params["cond_nconsts"], params["body_nconsts"]
        yield params["cond_jaxpr"].jaxpr, [*arguments[:test], *arguments[test + body :]]
        yield params["body_jaxpr"].jaxpr, arguments[test:]
        return
    for function in bodies(params):
        given = len(function.invars)
        yield function, arguments[len(arguments) - given :] if given <= len(arguments) else []


def bodies(params: Any) -> Iterator[Any]:
    """The functions among the parameters of an operation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner
