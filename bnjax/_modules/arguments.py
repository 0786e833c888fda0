"""What the constructors' arguments mean, written once, and put into the docstring of every class."""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bnjax._norms.spec import Spec

MEANINGS = {
    "activation": '`None`, `"relu"`, `"gelu"` (approximate), `"silu"` or a callable (a module, too), applied last.',
    "axis": "the feature axes; the scale and the bias have their lengths.",
    "axis_index_groups": "groups of devices along `axis_name`, where JAX takes them.",
    "axis_name": "a name or names of `pmap`, `shard_map` or `vmap` to measure over, too.",
    "bias_metadata": "metadata of the variable `bias`.",
    "collection_name": "the collection that keeps `u` and `sigma`.",
    "dtype": "of the result; inferred from input and parameters by default.",
    "epsilon": "added to what is divided by, before the root is taken.",
    "error_on_non_matrix": "raise for weights of more than two axes; without, all axes but the last are taken as one.",
    "feature_axes": "the axes of which the scale and the bias have the lengths.",
    "force_float32_reductions": "statistics are float32 or wider in any case; a running state is float32 with it.",
    "group_size": "how many neighbouring channels are in a group.",
    "layer_instance": "the layer whose weights are normalized.",
    "momentum": "the fraction of the running state that is kept (1 - PyTorch's).",
    "n_steps": "how many steps of power iteration a call makes.",
    "num_features": "the number of features.",
    "num_groups": "how many groups of neighbouring channels there are.",
    "param_dtype": "of parameters.",
    "promote_dtype": "called as Flax calls it, with input and parameters.",
    "reduction_axes": "the axes that are measured over.",
    "rngs": "where initializers take their keys.",
    "scale_metadata": "metadata of the variable `scale`.",
    "update_stats": "keep the outcome of the power iteration; in training by default.",
    "use_fast_variance": "measure in one pass; without, in two.",
    "use_running_average": "normalize by the running state; here or at the call.",
    "variable_filter": "which parameters of the layer are normalized.",
    "zero_masked": "make zero what is masked out, in the result and in all gradients, whatever stands there.",
}
# In the docstrings of functions these mean something else.
OF_MODULES = {"activation", "axis_name", "dtype", "reduction_axes"}

_SECTION = re.compile(r"^(?:Args|Attributes):\n((?: .*\n|\n(?= ))+)", re.MULTILINE)
_ENTRY = re.compile(r"^  (\w+): (.*(?:\n    .*)*)", re.MULTILINE)


def explain(names: Mapping[str, Any], title: str) -> None:
    """Writes the meaning of each argument into the docstrings of our classes among `names`, as far as it is known.

    What the class says itself comes first, then its bases, then the function of its norm, then `MEANINGS`.

    Args:
      names: those of a module.
      title: of the section: `"Args"` or `"Attributes"`.
    """
    classes = [thing for thing in names.values() if inspect.isclass(thing) and thing.__module__.startswith("bnjax")]
    found = {cls: _with_section(cls, title) for cls in classes}  # first all, because classes read their bases
    for cls, docstring in found.items():
        cls.__doc__ = docstring


def _arguments(cls: type) -> dict[str, Any]:
    """The constructor's arguments and their defaults, without those that every linen module has."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: p.default for name, p in parameters.items() if name not in ("self", "parent", "name")}


def _with_section(cls: type, title: str) -> str:
    text = inspect.cleandoc(cls.__doc__ or "") + "\n"
    known = _meanings(cls)
    lines = "".join(f"  {name}: {known[name]}\n" for name in _arguments(cls) if name in known)
    if not lines:
        return text
    section = f"{title}:\n{lines}"
    if own := _SECTION.search(text):
        return text[: own.start()] + section + ("\n" if own[0].endswith("\n\n") else "") + text[own.end() :]
    after = re.search(r"^(?:References:|>>> )", text, re.MULTILINE)
    if after is None:
        return f"{text}\n{section}"
    return f"{text[: after.start()]}{section}\n{text[after.start() :]}"


def _meanings(cls: type) -> dict[str, str]:
    spec: Spec | None = getattr(cls, "spec", None)
    known, defaults = dict(MEANINGS), _arguments(cls)
    if spec is not None:
        of_function = _entries([spec.function.__doc__])
        known |= {name: said for name, said in of_function.items() if name not in OF_MODULES}
        for name in spec.parameters:
            number = ", or a number; by default the norm's own" if defaults.get(f"{name}_init") is None else ""
            known[f"use_{name}"] = f"have a parameter `{name}`{_said_of(name, spec, of_function)}"
            known[f"{name}_init"] = f"what `{name}` starts from: an initializer{number}."
    return known | _entries(c.__doc__ for c in reversed(cls.__mro__) if c.__module__.startswith("bnjax"))


def _said_of(name: str, spec: Spec, of_function: Mapping[str, str]) -> str:
    if name in ("scale", "bias"):
        return "." if spec.wraps else "; without, the call may give one."
    said = of_function.get(name, "likewise")
    return "." if said.startswith("likewise") else f": {said}"


def _entries(docstrings: Iterable[str | None]) -> dict[str, str]:
    """What docstrings say of each argument; a later one has the last word."""
    found: dict[str, str] = {}
    for docstring in docstrings:
        for section in _SECTION.findall(inspect.cleandoc(docstring or "") + "\n"):
            found |= dict(_ENTRY.findall(section))
    return found
