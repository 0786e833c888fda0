"""Imports run downwards only, and each room imports what it may."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import those of a lower floor. A new module is given its floor here.
FLOORS = {
    "bnjax._checks": 0,
    "bnjax._compilers": 0,
    "bnjax._devices": 0,
    "bnjax._masks": 1,
    "bnjax._sharding": 2,
    "bnjax._affine": 2,
    "bnjax._moments": 2,
    "bnjax._normalize": 3,
    "bnjax._state": 3,
    "bnjax._accumulate": 3,
    "bnjax._norm_params": 4,
    "bnjax._remat": 4,
    "bnjax._batch": 4,
    "bnjax._sample": 4,
    "bnjax._weights": 4,
    "bnjax._parts": 4,
    "bnjax._domains": 5,
    "bnjax._evo": 5,
    "bnjax._mixtures": 5,
    "bnjax._recurrent": 5,
    "bnjax._renorm": 5,
    "bnjax._response": 5,
    "bnjax._scaling": 5,
    "bnjax._whitening": 5,
    "bnjax._registry": 6,
    "bnjax": 7,  # the public face of those
    "bnjax._layers": 7,
    "bnjax._modules": 7,
    "bnjax.linen": 8,
    "bnjax.nnx": 8,
    "experiments": 9,
    "configs": 10,
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
    return found


def test_imports_run_downwards_only():
    modules = sources(ROOT)
    assert {"bnjax", "bnjax._moments", "bnjax.linen._batch", "bnjax.nnx._batch"} <= set(modules)
    assert violations(modules) == []


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("bnjax._moments", "from bnjax._normalize import normalize", "not below"),
        ("bnjax._batch", "from bnjax import _sample", "not below"),
        ("bnjax._checks", "import bnjax", "not below"),
        ("bnjax._batch", "import bnjax.linen", "not below"),
        ("bnjax._modules", "from bnjax import moments", "not below"),
        ("bnjax.linen._batch", "from bnjax import batch_norm", "public face"),
        ("bnjax.linen._batch", "from bnjax.nnx import BatchNorm", "not below"),
        ("bnjax.linen._batch", "def f():\n    from flax import nnx", "other framework"),
        ("bnjax.nnx._batch", "import flax.linen as nn", "other framework"),
        ("bnjax._modules", "import flax", "does not know flax"),
        ("bnjax._batch", "from flax import linen", "does not know flax"),
        ("bnjax._batch", "from experiments.train import main", "not below"),
        ("bnjax._batch", "from ._moments import merge", "relatively"),
        ("bnjax._new", "", "no floor"),
        ("experiments.train", "from bnjax._moments import psum", "not public"),
        ("experiments.train", "from bnjax import _moments", "not public"),
        ("experiments.train", "import configs.digits_cnn", "not below"),
    ],
)
def test_what_is_forbidden_is_found(module, source, words):
    assert len(found := violations({module: source})) == 1, found
    assert words in found[0]


def test_what_is_allowed_is_not():
    assert not violations(
        {
            "bnjax": "from bnjax._moments import Moments as Moments",
            "bnjax._batch": "import jax\nfrom bnjax import _checks as checks\nfrom bnjax._normalize import standardize",
            "bnjax.linen": "from bnjax.linen._batch import BatchNorm as BatchNorm",
            "bnjax.linen._batch": "from flax import linen as nn\nfrom bnjax._modules import call_batch_norm",
            "bnjax.nnx._batch": "from flax import nnx",
            "experiments.train": "from bnjax import linen as bnn, moments\nfrom flax import linen, nnx",
            "configs.digits_cnn": "from experiments.config import Config",
        }
    )


def test_the_core_is_imported_without_flax():
    code = "import sys, bnjax; sys.exit(any(m.split('.')[0] == 'flax' for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
