"""Imports run downwards only, and each room imports what it may."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from bnjax import Moments
from bnjax import _checks as checks
from tests.kit.apis import APIS

ROOT = Path(__file__).parents[2]

# A module may import those of its own room, and of rooms on a lower floor. A new room is given its floor here.
FLOORS = {
    "bnjax._unstable": 0,
    "bnjax._complex": 0,
    "bnjax._checks": 1,
    "bnjax._masks": 2,
    "bnjax._collectives": 3,
    "bnjax._lowering": 3,
    "bnjax._core": 4,
    "bnjax._norms": 5,
    "bnjax._lifecycle": 6,  # which knows no framework; only `lifecycle` of linen and nnx see it and the modules
    "bnjax._modules": 6,
    "bnjax.family": 7,
    "bnjax.distributed": 7,
    "bnjax": 8,  # the everyday face of those
    "bnjax.linen": 9,
    "bnjax.nnx": 9,
    "experiments": 10,
    "configs": 11,
}
# What each room of the experiments may import beside itself. All else there is a command, which nobody imports.
DOMAIN = {"cli", "config", "data", "models", "tasks", "results"}
EXPERIMENTS = {
    "cli": set(),
    "config": {"cli"},
    "data": {"cli", "config"},
    "models": {"cli", "config"},
    "results": {"cli", "config"},
    "tasks": {"cli", "config", "results"},
    "measure": DOMAIN,
    "training": DOMAIN,
    "lab": DOMAIN,
    "studies": DOMAIN | {"measure", "training", "lab"},  # and none sees another
}
FRAMEWORK_ROOMS = {"bnjax.linen": "flax.linen", "bnjax.nnx": "flax.nnx"}


def sources(root: Path) -> dict[str, str]:
    """Module name to source, of all that is shipped or run."""
    files = [f for room in ("bnjax", "experiments", "configs") for f in sorted((root / room).rglob("*.py"))]
    return {
        str(f.relative_to(root).with_suffix("")).replace("/", ".").removesuffix(".__init__"): f.read_text()
        for f in files
    }


def imports(source: str) -> set[str]:
    """Every module, or name of a module, that a source imports, in full."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str | None:
    """The longest name in FLOORS that `name` is, or is in."""
    parts = name.split(".")
    return next((r for n in range(len(parts), 0, -1) if (r := ".".join(parts[:n])) in FLOORS), None)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def forbidden_experiment(module: str, name: str) -> str:
    """Why a module of the experiments may not import another of them; or nothing."""
    own, other = (n.split(".")[1:3] for n in (module, name))
    if not own or not other:
        return ""
    if own[0] == "studies" == other[0] and own != other:
        return "which is another study"
    if own[0] == other[0]:
        return ""
    if other[0] not in EXPERIMENTS:
        return "which is a command"
    return "" if own[0] not in EXPERIMENTS or other[0] in EXPERIMENTS[own[0]] else f"which `{own[0]}` does not see"


def violations(modules: dict[str, str]) -> list[str]:
    found = []
    for module, source in modules.items():
        own = room(module)
        library = is_in(module, "bnjax")
        if own is None or (own == "bnjax" and module != "bnjax"):
            found.append(f"{module} has no floor")
            continue
        for name in sorted(imports(source)):
            where = room(name)
            if name.startswith("."):
                found.append(f"{module} imports {name} relatively")
            elif where is not None and where != own and FLOORS[where] >= FLOORS[own]:
                found.append(f"{module} imports {name}, which is not below it")
            elif library and where == "bnjax" and module != "bnjax":
                found.append(f"{module} imports {name} through the public face")
            elif library and is_in(name, "flax") and own not in FRAMEWORK_ROOMS:
                found.append(f"{module} imports {name}; the core does not know flax")
            elif any(
                own == r and is_in(name, f) for r in FRAMEWORK_ROOMS for o, f in FRAMEWORK_ROOMS.items() if o != r
            ):
                found.append(f"{module} imports {name}, the other framework's")
            elif not library and is_in(name, "bnjax") and any(part.startswith("_") for part in name.split(".")):
                found.append(f"{module} imports {name}, which is not public")
            elif where == own == "experiments" and (why := forbidden_experiment(module, name)):
                found.append(f"{module} imports {name}, {why}")
    return found


def test_imports_run_downwards_only():
    modules = sources(ROOT)
    assert {"bnjax", "bnjax._core.moments", "bnjax.linen._batch", "bnjax.nnx._batch"} <= set(modules)
    assert violations(modules) == []


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("bnjax._core.moments", "from bnjax._norms.batch import batch_norm", "not below"),
        ("bnjax._lowering.sums", "from bnjax._core import moments", "not below"),
        ("bnjax._checks", "import bnjax", "not below"),
        ("bnjax._norms.batch", "import bnjax.linen", "not below"),
        ("bnjax._modules.call", "from bnjax import moments", "not below"),
        ("bnjax.linen._batch", "from bnjax import batch_norm", "public face"),
        ("bnjax.linen._batch", "from bnjax.nnx import BatchNorm", "not below"),
        ("bnjax.linen._batch", "def f():\n    from flax import nnx", "other framework"),
        ("bnjax.nnx._batch", "import flax.linen as nn", "other framework"),
        ("bnjax._modules.call", "import flax", "does not know flax"),
        ("bnjax._norms.batch", "from flax import linen", "does not know flax"),
        ("bnjax._norms.batch", "from experiments.train import main", "not below"),
        ("bnjax._norms.batch", "from .moments import merge", "relatively"),
        ("bnjax._new", "", "no floor"),
        ("experiments.train", "from bnjax._core.moments import psum", "not public"),
        ("experiments.train", "from bnjax import _core", "not public"),
        ("experiments.train", "import configs.digits_cnn", "not below"),
        ("experiments.compare", "from experiments import train", "a command"),
        ("experiments.training.run", "from experiments.bench.options import Arguments", "a command"),
        ("experiments.cli.flags", "from experiments.config import Config", "`cli` does not see"),
        ("experiments.config.types", "from experiments.models import MODELS", "`config` does not see"),
        ("experiments.data", "from experiments.training.layouts import Layout", "`data` does not see"),
        ("experiments.models.resnet", "from experiments.data import Data", "`models` does not see"),
        ("experiments.tasks.classification", "from experiments.models.network import Network", "`tasks` does not see"),
        ("experiments.results.page", "from experiments import training", "`results` does not see"),
        ("experiments.measure.hlo", "from experiments.training import run", "`measure` does not see"),
        ("experiments.training.run", "from experiments.studies import lr", "`training` does not see"),
        ("experiments.studies.lr", "from experiments.studies.depth import main", "another study"),
    ],
)
def test_what_is_forbidden_is_found(module, source, words):
    assert len(found := violations({module: source})) == 1, found
    assert words in found[0]


def test_what_is_allowed_is_not():
    assert not violations(
        {
            "bnjax": "from bnjax._core.moments import Moments as Moments",
            "bnjax._norms.batch": "from bnjax import _checks as checks\nfrom bnjax._core.rule import standardize",
            "bnjax.linen": "from bnjax.linen._batch import BatchNorm as BatchNorm",
            "bnjax.linen._batch": "from flax import linen as nn\nfrom bnjax._modules.call import call_batch_norm",
            "bnjax.nnx._batch": "from flax import nnx",
            "experiments.train": "from bnjax import linen as bnn, moments\nfrom flax import linen, nnx",
            "configs.digits_cnn": "from experiments.config import Config",
            "experiments.bench.run": "from experiments.bench.options import Arguments",
            "experiments.compare": "from experiments.training import run\nfrom experiments.results import page",
            "experiments.training.steps": "from experiments.models import make_network",
            "experiments.studies.lr": "from experiments.training import run\nfrom experiments.measure import hlo",
        }
    )


def compilers_words(modules: dict[str, str]) -> list[str]:
    """What is written for compilers, outside its room; the memory switch has one barrier of its own."""
    allowed = ("bnjax._lowering", "bnjax._core.remat")
    words = re.compile(r"lax\.(?:platform_dependent|optimization_barrier)")
    return [
        f"{module}: {word}"
        for module, source in modules.items()
        if is_in(module, "bnjax") and not any(is_in(module, room) for room in allowed)
        for word in words.findall(source)
    ]


def test_what_compilers_need_to_be_told_stands_in_one_room():
    assert compilers_words(sources(ROOT)) == []
    assert compilers_words({"bnjax._core.rule": "x = lax.optimization_barrier(x)"})
    assert compilers_words({"bnjax._norms.layer": "f = partial(lax.platform_dependent, cpu=g)"})
    assert not compilers_words({"bnjax._lowering.sums": "lax.platform_dependent(x)"})


UNSTABLE = (
    r"jax\._src", r"core\.Tracer", "manual_axis_type", r"\.vma\b", '"vma"', "__captures__", "_pytree__", "first_from",
    r"flax\.nnx\.(nn|module)\.", r"nnx\.(nn|module)\.", r"flax\.core\.(lift|meta)",
    r"core import (lift|meta)", r"jax\.interpreters", r"jax\.extend",
)  # fmt: skip


def unstable_names(files: dict[str, str]) -> list[str]:
    """Names that JAX and Flax do not promise to keep, outside of the files that are made for them."""
    pattern = re.compile("|".join(UNSTABLE))
    return [
        f"{file}: {found.group()}"
        for file, source in files.items()
        if not file.endswith("_unstable.py")
        for found in pattern.finditer(source)
    ]


def test_names_that_may_go_stand_in_files_of_their_own():
    rooms = ("bnjax", "experiments", "configs", "tests")
    files = {str(f.relative_to(ROOT)): f.read_text() for room in rooms for f in (ROOT / room).rglob("*.py")}
    del files[str(Path(__file__).relative_to(ROOT))]
    assert unstable_names(files) == []
    for line in ("from jax._src import core", "isinstance(x, jax.core.Tracer)", "from flax.core import lift"):
        assert unstable_names({"bnjax/_checks.py": line})
        assert not unstable_names({"bnjax/_unstable.py": line})


def test_the_core_is_imported_without_flax():
    code = "import sys, bnjax; sys.exit(any(m.split('.')[0] == 'flax' for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("child", ["bench", "scale"])
def test_what_compiles_for_other_machines_needs_little(child):
    """Their environments have JAX, Flax and Optax, and not what draws, reads flags or loads data."""
    code = f"import sys, experiments.{child}.compiled; print({{'matplotlib', 'sklearn', 'tyro'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_everyday_face_is_small_and_every_name_has_its_place():
    import bnjax
    import bnjax.distributed
    import bnjax.family

    assert len(bnjax.__all__) <= 25
    public = {name for name in vars(bnjax) if not name.startswith("_")}
    old = public - {"distributed", "family", "linen", "nnx"} - set(bnjax.__all__)
    assert len(old) == 31, "old names of `bnjax` stay, and new ones have their place in `bnjax.family` alone"
    for name in old:
        module = bnjax.family if name in bnjax.family.__all__ else bnjax.distributed
        assert getattr(bnjax, name) is getattr(module, name)


def test_what_is_said_of_files_of_tests_is_said_of_files_that_exist():
    from tests import conftest

    def name_of(file):
        return f"{file.parent.name}/{file.stem.removeprefix('test_')}"

    texts = {name_of(f): f.read_text() for f in (ROOT / "tests").rglob("test_*.py")}
    assert texts.keys() >= conftest.COMPILED_IN_FULL
    for begins in conftest.ANY_JAX:
        assert any(name.startswith(begins) for name in texts)
    left_out = [text for name, text in texts.items() if name.startswith(conftest.ANY_JAX)]
    assert all(sum(f"def {name}(" in text for text in left_out) == 1 for name in conftest.BUT)


def test_every_file_of_tests_stands_in_a_folder():
    """Where it stands says what it is about, and which compilation and release of JAX it gets (tests/conftest.py)."""
    files = [*(ROOT / "tests").rglob("test_*.py")]
    assert len(files) > 50
    assert [f.name for f in files if f.parent == ROOT / "tests"] == []


def argument_lists(modules: dict[str, str], public: set[str]) -> dict[str, int]:
    """How many arguments each function of the library takes, but for those that users call."""
    found = {}
    for module, source in modules.items():
        for node in ast.walk(ast.parse(source)) if is_in(module, "bnjax") else ():
            if isinstance(node, ast.FunctionDef) and node.name not in {*public, "__init__", "__call__"}:
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                found[f"{module}.{node.name}"] = len([name for name in names if name not in ("self", "cls")])
    return found


def test_functions_take_records_and_not_the_arguments_one_by_one():
    import bnjax

    modules = {name: source for name, source in sources(ROOT).items() if name != "bnjax._core.reference"}  # to be read
    lengths = argument_lists(modules, {name for name in vars(bnjax) if not name.startswith("_")})
    assert {name: n for name, n in lengths.items() if n > 8} == {}
    assert argument_lists({"bnjax._x": "def f(a, b, *, c): ...\ndef g(d): ..."}, {"g"}) == {"bnjax._x.f": 3}


@pytest.mark.parametrize("api", APIS)
def test_a_call_is_checked_once(monkeypatch, api):
    visits = []
    names = ["canonical_axes", "float_state", "non_negative", "output_dtype", "unit_interval"]
    for name in names:
        check = getattr(checks, name)
        monkeypatch.setattr(checks, name, lambda *args, name=name, check=check: visits.append(name) or check(*args))
    ones = jnp.ones(3)
    APIS[api](jnp.arange(12.0).reshape(4, 3), None, ones, ones, Moments(jnp.zeros(()), ones, ones))
    assert sorted(visits) == names
