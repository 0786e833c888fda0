"""The pages of the site that come from the library: a page for each norm, and the reference of every public name."""

import inspect
import re
import types
from collections.abc import Iterator

import bnjax
import bnjax.distributed
import bnjax.family
import bnjax.linen
import bnjax.nnx
from bnjax import NORMS

MODULES = (bnjax, bnjax.family, bnjax.distributed, bnjax.linen, bnjax.nnx)
NOTE = "<!-- Made by `python -m experiments.docs --write`. -->\n\n"

# What is no function and no class has no docstring.
DATA = {
    "NORMS": (
        "All norms by name, in the order of [the table](../norms/index.md).",
        "A mapping from the name of a norm to its row. A row has the attributes `function`, `module` (the name of\n"
        "   the class), `axes`, `state`, `sync`, `mask`, `gradient`, `paper`, `use`, `arguments` and\n"
        "   `takes_running_average`. `sync`, `mask` and `gradient` are enums: true where the norm can do it, with a\n"
        "   `reason`.",
    ),
    "NormName": ("The names of all norms, for type checkers.", "A `typing.Literal` of the keys of `NORMS`."),
}


def pages() -> dict[str, str]:
    """The text of every generated page, by its path in the repository."""
    norms = {f"docs/norms/{name}.md": norm_page(name) for name in NORMS}
    return norms | {f"docs/reference/{short(module)}.md": reference_page(module) for module in MODULES}


def public_names(module: types.ModuleType) -> list[str]:
    """The names of a module that are for users."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    names = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}  # and those that are lazy
    return sorted(name for name, thing in names.items() if not isinstance(thing, types.ModuleType))


# A norm


def norm_page(name: str) -> str:
    """What the registry and the function's docstring say of a norm."""
    norm = NORMS[name]
    home = "bnjax" if norm.function.__name__ in bnjax.__all__ else "bnjax.family"
    arguments = "".join(f", {k}={v!r}" for k, v in norm.arguments.items())
    text, references, example = parts_of(inspect.getdoc(norm.function) or "")
    facts = {
        "linen": f"{{py:class}}`bnjax.linen.{norm.module}`, or `bnjax.linen.make_norm({name!r})`".replace("'", '"'),
        "nnx": f"{{py:class}}`bnjax.nnx.{norm.module}`, or `bnjax.nnx.make_norm({name!r}, ...)`".replace("'", '"'),
        "function": f"{{py:func}}`{home}.{norm.function.__name__}`",
        "measures": norm.axes if norm.wraps or norm.axes == "none" else f"{norm.axes}, of an input (N, H, W, C)",
        "keeps between calls": norm.state,
        "measures over devices": norm.sync,
        "takes a mask": norm.mask,
        "gradient of the formula": norm.gradient,
        "paper": with_links(norm.paper),
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    preset = f"\n`make_norm` gives the class `{arguments[2:]}`.\n" if arguments else ""
    return (
        f"# `{name}`: {norm.module}\n\n{NOTE}**When to use it:** {norm.use}.\n\n"
        f"| | |\n| --- | --- |\n{table}{preset}\n"
        f"## What it computes\n\n{fenced(text)}\n\n"
        f"## Example\n\n```pycon\n{example}\n```\n\n"
        f"## References\n\n{with_links(references)}\n"
    )


def parts_of(docstring: str) -> tuple[str, str, str]:
    """What a docstring says before its first section, its references, and its example."""
    body, mark, example = docstring.partition("\n>>> ")
    sections = re.split(r"^(\w+):\n", body, flags=re.MULTILINE)
    named = dict(zip(sections[1::2], sections[2::2], strict=True))
    # Its list of arguments is in the reference.
    text = re.sub(r"\s*The arguments are those of `\w+`, but for:\s*$", "", sections[0].strip())
    return text, inspect.cleandoc(named["References"]), (mark + example).strip()


def fenced(text: str) -> str:
    """Paragraphs that end with two colons, and what is indented below, as Markdown writes them.

    The fence says `py`: the tests run what says `python`, and a formula does not run by itself.
    """
    block = re.compile(r"::\n\n((?: {4}.*\n|\n)*(?: {4}.*))")
    return block.sub(lambda m: f":\n\n```py\n{inspect.cleandoc(m[1])}\n```", text)


def with_links(text: str) -> str:
    """The text with a link for each arXiv number."""
    return re.sub(r"arXiv\s+(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


# The reference


def short(module: types.ModuleType) -> str:
    """The last part of a module's name."""
    return module.__name__.rpartition(".")[2]


def reference_page(module: types.ModuleType) -> str:
    """A table of the public names of a module, and an entry for each."""
    names = public_names(module)
    home = module.__name__
    rows = "".join(
        f"| {{py:obj}}`{name} <{first_home(module, name)}.{name}>` | {first_line(module, name)} |\n" for name in names
    )
    entries = "\n".join(line for name in names for line in entry(module, name))
    return (
        f"# `{home}`\n\n{NOTE}{(module.__doc__ or '').strip()}\n\n"
        f"| name | what it is |\n| --- | --- |\n{rows}\n"
        f"```{{eval-rst}}\n.. currentmodule:: {home}\n\n{entries}```\n"
    )


def first_home(module: types.ModuleType, name: str) -> str:
    """The first module that has the same class: there alone it is in the index, which holds each class once."""
    thing = getattr(module, name)
    homes = (m.__name__ for m in MODULES if name in public_names(m) and getattr(m, name) is thing)
    return next(homes) if inspect.isclass(thing) else module.__name__


def first_line(module: types.ModuleType, name: str) -> str:
    """What a name is, in a line."""
    if name in DATA:
        return DATA[name][0]
    lines = (inspect.getdoc(getattr(module, name)) or "").partition("\n\n")[0]
    return " ".join(lines.split())


def entry(module: types.ModuleType, name: str) -> Iterator[str]:
    """The directive that puts a name into the reference."""
    if name in DATA:
        yield from (f".. py:data:: {name}", "", f"   {DATA[name][1]}", "")
    else:
        kind = "class" if inspect.isclass(getattr(module, name)) else "function"
        again = [] if first_home(module, name) == module.__name__ else ["   :no-index:"]
        yield from (f".. auto{kind}:: {module.__name__}.{name}", *again, "")
