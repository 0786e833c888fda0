"""The machines that a program can be compiled for, present or not."""

import importlib.util
from typing import Any, NamedTuple

from experiments.cli.errors import UserError

# The text form of XLA's description of a GPU, for compiling without one.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
GPUS = {"h100": _H100}


class Target(NamedTuple):
    """A platform, and which of its kind: nothing for the CPU, a topology for a TPU, a name for a GPU."""

    platform: str
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.platform}:{self.kind}" if self.kind else self.platform

    @property
    def environment(self) -> dict[str, str]:
        """What the environment of the process that compiles must have."""
        always = {"JAX_PLATFORMS": "cpu"}
        if self.platform == "tpu":
            return always | {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        if self.platform == "gpu":  # which kernels are fastest cannot be tried out
            return always | {"XLA_FLAGS": "--xla_gpu_autotune_level=0"}
        return always

    @property
    def missing(self) -> str:
        """The sentence to say if this environment has no compiler for it; or nothing."""
        if self.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
            return (
                f"{self}: this environment has no compiler for TPUs; `pip install 'bnjax[bench-tpu]'` brings it, or "
                "give `--tpu-python` the interpreter of an environment that has it."
            )
        if self.platform == "gpu" and importlib.util.find_spec("jax_cuda12_plugin") is None:
            return (
                f"{self}: this environment has no compiler for GPUs; make one with `pip install 'jax[cuda12]' flax "
                "optax` (5 GB) and give its interpreter to `--gpu-python`."
            )
        return ""


def target_of(text: str) -> Target:
    """The target in `--target`.

    >>> target_of("tpu:v5e:2x2")
    Target(platform='tpu', kind='v5e:2x2')
    """
    platform, _, kind = text.partition(":")
    if text == "cpu" or (platform == "tpu" and kind.count(":") == 1) or (platform == "gpu" and kind in GPUS):
        return Target(platform, kind)
    raise UserError(f"`--target` must be `cpu`, a TPU such as `tpu:v5e:2x2`, or `gpu:h100`, but it is {text!r}.")


def devices(target: Target) -> list[Any]:
    """Devices to compile for: one CPU, the whole topology of a TPU, four GPUs."""
    import jax
    from jax.experimental import topologies

    if target.platform == "cpu":
        return jax.devices("cpu")[:1]
    if target.platform == "tpu":
        return list(topologies.get_topology_desc(platform="tpu", topology_name=target.kind).devices)
    return list(
        topologies.get_topology_desc(
            platform="cuda", topology_name=target.kind, topology="1x1x4", target_config=GPUS[target.kind]
        ).devices
    )
