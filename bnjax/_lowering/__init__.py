"""What each compiler wants written differently. The mathematics is the same on every platform.

`lax.platform_dependent` and `lax.optimization_barrier` stand in this package and nowhere else (but for one barrier in
`bnjax._core.remat`, the memory switch). A reader of the mathematics may take each function here for what its first
line says. Figures are of XLA in jax 0.10.2. To see whether an entry is still needed, let a barrier return its
argument, or leave out what a platform has of its own (`cpu=`, `cuda=`), and run `python -m experiments.bench` with
the options given.

`platforms.by_platform` is the switch between ways to write a function. `linear.linear` is the tangent of a norm; its
transpose may be written in another way for each platform. Each is one primitive that is traced once. With the switch
and the checkpoint of JAX it took 2.0 times as long to trace a step of ResNet-50 as with Flax's norms, and it takes
1.1 times as long now. See `--parts model`.

`linear.linear` keeps the residuals only. On a CPU its transpose begins with a barrier (`together_p`): a step of
ResNet-50 in float32 needs 2920 MB, and 4340 MB without the barrier. See `--parts model --target cpu`.

`barriers.unshared` stops the CPU's compiler from storing `x - c` for two sums: a norm moves 13 tensors, and 17
without. See `--parts compiled --target cpu`.

`barriers.isolated` keeps what follows group norm's sums out of the CPU's library of sums: three arrays of the input's
size. See `--parts compiled --target cpu`.

`barriers.materialized` rounds the output of a block with a residual on a GPU: ResNet-50 with relu inside needs 1344
MB on an H100, and 1640 MB without. See `--parts model --target gpu:h100`.

`barriers.pinned` rounds a mean so that all its uses, on every platform, see the same number. It is for exact results,
not for speed. See tests/core/test_numerics.py.

`sums.power_sums` takes both sums in one pass over 7 to 32 neighbours on a CPU, which is twice as fast, and sums `c -
x` where `x` is narrower than the sums, for the sake of GPUs: 1445 MB rather than 1484 MB. (Of float32 it sums `x -
c`: 0.86 of Flax's traffic on a GPU in group and instance norm, and 1.12 with `c - x`.) See `--parts op` and `--parts
model --target gpu:h100`.

`sums.summed_as_complex` takes two gradients in one sum on a GPU: a tenth of the traffic of a step. See the same.

`sums.summed_rows_first` takes a gradient of each example in two steps on a CPU, so that the products are not stored.
See `--parts compiled --target cpu`.
"""
