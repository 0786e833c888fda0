"""The overrides that are in force, as far as the caches of `jit` must know them.

This is all of lifecycle that `import bnjax` loads: a user context that is created later would have every function that
was jitted before traced again.
"""

from typing import Any

import jax

ACTIVE: Any = jax.make_user_context(())
