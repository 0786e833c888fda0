"""What the tests share, each thing once.

`formulas`: every norm in float64, by its name; a new norm adds one formula there.
`references`: batch norm in numpy with its derivative by hand, and moments.
`norms`: a norm by its name, its modules, a sample for it, and what it must compute.
`samples`, `steps`: inputs, running states, and a training step of `batch_norm`.
`comparison`: how results and errors are compared.
`devices`: meshes and what is spread over them. `programs`: what a compiled program says over the wire.
`apis`, `dropin`: one call by each of the library's faces, and one by Flax's class or ours.
`models_linen`: Flax's models that know nothing of the library, by name; `cases`: batches and variables for them;
`convnets_linen`, `oddities_linen`: their classes.
`_unstable`: what JAX does not promise to keep.
"""
