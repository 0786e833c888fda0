"""Would the tests notice? Faults of one line, each put into a copy of the library: a named test must fail.

`python -m tests.mutants` prints a table, and exits with 1 if a fault survives, if its line is no longer found, or
if the test does not pass without it. `python -m tests.mutants ema` tries those whose name has the word.
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
AT_ONCE = 2
# Each run of pytest is a process that begins where JAX and Flax are imported already. They start no threads before
# their first use, so that such a process may be forked.
FORKS: Any = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["jax.numpy", "flax.linen", "flax.nnx", "optax", "chex", "pytest"])


class Mutant(NamedTuple):
    name: str
    file: str  # in bnjax
    old: str  # occurs in it once
    new: str
    test: str  # in tests, and must fail


RULE = "count, s1, s2 = _combine(reduction, (count, s1, s2), c)"
BACK = "t1, t2 = _combine(reduction, sums if reduction.pools is None else isolated(sums, var))"

MUTANTS = [
    Mutant(
        "sync: devices weigh the same", "_core/rule.py",
        RULE, "count, s1, s2 = _combine(reduction, (count / count, s1 / count, s2 / count), c)",
        "devices/test_sync.py::test_every_layout_is_one_device[float32-vmap]",
    ),
    Mutant(
        "all_reduce: devices weigh the same", "_core/moments.py",
        "count = jnp.asarray(m.count, var.dtype)", "count = jnp.ones_like(m.count, var.dtype)",
        "devices/test_sync.py::test_unequal_devices_weigh_by_count_where_flax_averages",
    ),
    Mutant(
        "sync: gradients summed twice", "_core/rule.py",
        BACK, BACK.replace("sums if", "_combine(reduction, sums) if"),
        "devices/test_sync.py::test_every_layout_is_one_device[float32-vmap]",
    ),
    Mutant(
        "sync: forgotten in the backward pass", "_core/rule.py",
        BACK, BACK.replace("_combine(reduction, ", "").removesuffix(")"),
        "devices/test_sync.py::test_every_layout_is_one_device[float32-vmap]",
    ),
    Mutant(
        "state: its gradient is not stopped", "_norms/batch.py",
        "running = lax.stop_gradient(running)", "running = running",
        "core/test_gradients.py::test_the_state_has_no_gradient_and_the_output_none_in_the_state[{}]",
    ),
    Mutant(
        "mask: ignored in the backward pass", "_core/rule.py",
        "dx = valid(mask, dx.astype(config.compute_dtype))\n    d =", "dx = dx.astype(config.compute_dtype)\n    d =",
        "core/test_masks.py::test_output_gradients_and_state_under_a_mask[float32-{}-elements]",
    ),
    Mutant(
        "mask: what is not finite reaches gradients", "_core/affine_map.py",
        "masks.finite(mask, x.astype(config.compute_dtype) - c)", "x.astype(config.compute_dtype) - c",
        "core/test_masks.py::test_what_is_not_finite_and_masked_out_stays_where_it_is[{}-nan]",
    ),
    Mutant(
        "derf: the shift is left out", "_norms/pointwise.py",
        "jax.lax.erf(alpha * t + shift)", "jax.lax.erf(alpha * t)",
        "norms/test_battery.py::test_output_state_and_gradients[derf]",
    ),
    Mutant(
        "spec: axes that are not measured over", "_norms/group.py",
        'Measured("HWC", "each group of channels")', 'Measured("HW", "each group of channels")',
        "norms/test_family.py::test_the_axes_of_the_statistics_are_those_of_the_formula[group]",
    ),
    Mutant(
        "spec: a parameter starts elsewhere", "_norms/response.py",
        'parameters={"scale": ZEROS, "bias": ZEROS}', "parameters=AFFINE",
        "norms/test_family.py::test_what_variables_start_from[grn]",
    ),
    Mutant(
        "names: an old list", "_norms/names.py",
        '    "GlobalResponseNorm",\n', "",
        "norms/test_family.py::test_what_is_generated_is_up_to_date[bnjax/_norms/names.py]",
    ),
    Mutant(
        "help: what the function says of an argument is left out", "_modules/arguments.py",
        "known |= {name: said", "_ = {name: said",
        "modules/test_signatures.py::test_help_says_what_each_argument_of_a_class_means[nnx]",
    ),
    Mutant(
        "mask: nothing valid taken for variance 0", "_core/rule.py",
        "return var if mask is None else inf_where_empty(var, count)", "return var",
        "core/test_masks.py::test_a_feature_with_nothing_valid_is_its_bias[None-running-0.9]",
    ),
    Mutant(
        "mask: one of the first axes taken for one of the last", "_masks.py",
        "if from_right and from_left:", "if from_right and from_left and not missing:",
        "norms/test_masks.py::test_a_mask_is_refused_in_training_and_at_evaluation[layer]",
    ),
    Mutant(
        "mask: a traced negative entry is valid", "_masks.py",
        "jnp.where(negative, jnp.nan, 0)", "jnp.where(negative, 0, 0)",
        "norms/test_masks.py::test_masks_may_be_mapped_over_and_a_negative_entry_makes_nan[group]",
    ),
    Mutant(
        "mask: a traced negative entry drops what it does not cover", "_masks.py",
        "valid | negative", "valid",
        "norms/test_masks.py::test_masks_may_be_mapped_over_and_a_negative_entry_makes_nan[lrn]",
    ),
    Mutant(
        "mask: modules do not look at evaluation", "_modules/call.py",
        "ops = prepare(x, arguments)", "ops = prepare(x, arguments if train else arguments._replace(where=None))",
        "norms/test_masks.py::test_a_mask_is_refused_in_training_and_at_evaluation[batch]",
    ),
    Mutant(
        "zero_masked: what stands there is multiplied with a gradient", "_masks.py",
        "return (valid(mask, x), mask) if zero_masked", "return (x, mask) if zero_masked",
        "core/test_zero_masked.py::test_output_and_gradients_are_those_without_the_masked[batch]",
    ),
    Mutant(
        "zero_masked: forgotten in the result", "_core/affine_map.py",
        "    return masks.valid(zero, y)\n", "    return y\n",
        "core/test_zero_masked.py::test_output_and_gradients_are_those_without_the_masked[instance]",
    ),
    Mutant(
        "zero_masked: the result without its gradient", "_core/affine_map.py",
        "    return masks.valid(zero, y)\n", "    return y + lax.stop_gradient(masks.valid(zero, y) - y)\n",
        "core/test_zero_masked.py::test_output_and_gradients_are_those_without_the_masked[layer]",
    ),
    Mutant(
        "zero_masked: forgotten at evaluation", "_modules/call.py",
        "zero_masked=module.zero_masked, activation", "zero_masked=train and module.zero_masked, activation",
        "core/test_zero_masked.py::test_output_and_gradients_are_those_without_the_masked[batch]",
    ),
    Mutant(
        "zero_masked: an activation sees what is masked out", "_core/affine_map.py",
        "activation(masks.valid(zero, y))", "activation(y)",
        "core/test_zero_masked.py::test_the_residual_too_and_after_the_activation[{}]",
    ),
    Mutant(
        "zero_masked: a scale of each position is forgotten", "_core/prepare.py",
        'masks.valid_if_fits(zero, checks.feature_array(scale, "scale", x.shape, features))',
        'checks.feature_array(scale, "scale", x.shape, features)',
        "core/test_zero_masked.py::test_parameters_of_each_position_too[group]",
    ),
    Mutant(
        "ema: moves where nothing was seen", "_core/moments.py",
        "seen = jnp.asarray(batch.count) > 0", "seen = jnp.asarray(batch.count) >= 0",
        "core/test_moments.py::test_ema_skips_features_that_saw_nothing",
    ),
    Mutant(
        "ema: momentum swapped", "_core/moments.py",
        "for m in (momentum, 1 - momentum))", "for m in (1 - momentum, momentum))",
        "core/test_options.py::test_momentum_is_the_fraction_kept[0.25]",
    ),
    Mutant(
        "ema: the state is rounded to bfloat16", "_core/moments.py",
        "mixed.astype(old.dtype), old)", "mixed.astype(jnp.bfloat16).astype(old.dtype), old)",
        "core/test_options.py::test_momentum_is_the_fraction_kept[0.25]",
    ),
    Mutant(
        "variance: divided by n - 1 everywhere", "_core/moments.py",
        "s2 / k - abs_sq(delta)", "(s2 - k * abs_sq(delta)) / at_least_one(k - 1)",
        "norms/test_golden.py::test_five_steps_and_an_evaluation_are_those_of_pytorch[first-nc_float32]",
    ),
    Mutant(
        "variance: not clamped", "_core/rule.py",
        "    var = jnp.maximum(var, 0)\n", "",
        "core/test_numerics.py::test_the_first_step_is_never_worse_than_flax[0-100000.0]",
    ),
    Mutant(
        "variance: unbiased without a guard for n = 1", "_core/state.py",
        "jnp.maximum(n - 1, 1)", "(n - 1)",
        "core/test_masks.py::test_unbiased_counts_the_valid_elements",
    ),
    Mutant(
        "epsilon: outside the square root", "_core/affine_map.py",
        "a = _with_scale(lax.rsqrt(var + affine.epsilon), affine.scale)",
        "a = _with_scale(1 / (jnp.sqrt(var) + affine.epsilon), affine.scale)",
        "core/test_options.py::test_float64_is_computed_in_float64",
    ),
    Mutant(
        "axis: negative ones counted from the front", "_checks.py",
        "sorted(int(a) % ndim for a in given)", "sorted(abs(int(a)) % ndim for a in given)",
        "core/test_options.py::test_axes_of_one_length_are_not_confused[-2]",
    ),
    Mutant(
        "residual: added after relu", "_core/affine_map.py",
        "else z + affine.residual.astype(z.dtype)", "else jnp.maximum(z, 0) + affine.residual.astype(z.dtype)",
        "core/test_options.py::test_the_residual_is_added_before_the_activation[float32-all-relu]",
    ),
    Mutant(
        "tangent: the cube of the inverse deviation underflows", "_core/affine_map.py",
        "da = (dvar + daffine.epsilon) * r * r * (-0.5 * a)", "da = -0.5 * r * r * a * (dvar + daffine.epsilon)",
        "norms/test_large_numbers.py::test_gradients_do_not_underflow[batch-1000000000000000.0]",
    ),
    Mutant(
        "map: large terms that do not cancel", "_core/affine_map.py",
        "else (d - delta) * a + affine.bias", "else d * a + (affine.bias - delta * a)",
        "core/test_numerics.py::test_constants_become_the_bias_exactly[layer-False]",
    ),
    Mutant(
        "tangent: the pivot is not subtracted", "_core/affine_map.py",
        "masks.finite(mask, x.astype(config.compute_dtype) - c)", "masks.finite(mask, x.astype(config.compute_dtype))",
        "core/test_gradients.py::test_derivatives_are_those_of_plain_autodiff[grad-plain]",
    ),
    Mutant(
        "tangent: the variance about the pivot", "_core/rule.py",
        "return ddelta, 2 * (t2 / k - dot(delta, ddelta))", "return ddelta, 2 * (t2 / k)",
        "core/test_gradients.py::test_derivatives_are_those_of_plain_autodiff[grad-plain]",
    ),
    Mutant(
        "rows: the numbers summed where their squares should be", "_lowering/sums.py",
        "lax.reduce((d, d * d), (zero, zero)", "lax.reduce((d, d), (zero, zero)",
        "norms/test_battery.py::test_images_whose_rows_are_summed_first[batch]",
    ),
    Mutant(
        "rows: one gradient given for both", "_lowering/sums.py",
        "return both.real, both.imag", "return both.real, both.real",
        "norms/test_battery.py::test_images_whose_rows_are_summed_first[instance]",
    ),
    Mutant(
        "pools: the sums kept apart by another's NaN", "_lowering/barriers.py",
        "jnp.where(jnp.isnan(guard), jnp.nan, t)", "jnp.where(jnp.isnan(guard), t, jnp.nan)",
        "norms/test_battery.py::test_images_whose_rows_are_summed_first[group]",
    ),
    Mutant(
        "ghost: slices strided, not contiguous", "_norms/batch.py",
        "t.reshape((batch // size, size, *t.shape[1:]))",
        "t.reshape((size, batch // size, *t.shape[1:])).swapaxes(0, 1)",
        "core/test_options.py::test_ghost_batches_are_contiguous_slices_of_the_batch[2--1]",
    ),
    Mutant(
        "ghost: a count that does not vary is of one slice", "_norms/batch.py",
        "count=broadcast_count(slices.count, slices.mean, (0,))", "count=jnp.atleast_1d(slices.count)",
        "norms/test_battery.py::test_masks_of_every_shape_that_broadcasts[ghost]",
    ),
    Mutant(
        "merge: the count is not added up", "_core/moments.py",
        "return Moments(count, mean, var)\n\n\ndef reduce", "return Moments(count_b, mean, var)\n\n\ndef reduce",
        "core/test_options.py::test_no_momentum_is_the_pool_of_all_that_was_seen[float32]",
    ),
    Mutant(
        "merge: the variance between means is left out", "_core/moments.py",
        "b.var * share_b + between", "b.var * share_b",
        "core/test_moments.py::test_ema_is_not_a_merge",
    ),
    Mutant(
        "reduce: slices weigh the same", "_core/moments.py",
        "share = count / jnp.where(total > 0, total, 1)",
        "share = jnp.ones_like(count) / jnp.ones_like(count).sum(axes, keepdims=True)",
        "core/test_moments.py::test_reduce_along_any_axes_with_any_count",
    ),
    Mutant(
        "renorm: the correction has a gradient", "_core/rule.py",
        "delta, var, count = lax.stop_gradient(moments)", "delta, var, count = moments",
        "norms/test_battery.py::test_output_state_and_gradients[renorm]",
    ),
    Mutant(
        "domains: measured together", "_norms/domain.py",
        "member * own.count[None]", "member.max(0)[None] * own.count[None] + 0 * member",
        "norms/test_battery.py::test_output_state_and_gradients[domain]",
    ),
    Mutant(
        "parts: what is not finite is kept", "_norms/measure.py",
        "real=True, finite=True", "real=True, finite=False",
        "norms/test_battery.py::test_masked_out_is_not_there[grn]",
    ),
    Mutant(
        "parts: nothing valid taken for variance 0", "_norms/measure.py",
        "masks.inf_where_empty(m.var, m.count)", "m.var",
        "norms/test_battery.py::test_where_nothing_is_valid[switchable]",
    ),
    Mutant(
        "parts: devices weigh the same", "_norms/measure.py",
        "all_reduce(batch, checks.hashable_name(axis_name))",
        "all_reduce(Moments(jnp.ones_like(batch.count), batch.mean, batch.var), axis_name)",
        "norms/test_battery.py::test_eight_devices_are_one[switchable]",
    ),
    Mutant(
        "parts: the gradient does not go through the devices", "_norms/measure.py",
        "all_reduce(batch, checks.hashable_name(axis_name))",
        "jax.lax.stop_gradient(all_reduce(batch, checks.hashable_name(axis_name)))",
        "devices/test_all_norms.py::test_gradients_over_eight_devices_are_those_of_one[switchable]",
    ),
    Mutant(
        "whitening: equal eigenvalues taken for the usual case", "_norms/whitening.py",
        "a[:, :, None] * a[:, None, :] * (a[:, :, None] + a[:, None, :])", "2 * a[:, :, None] ** 2 * a[:, None, :]",
        "norms/test_battery.py::test_output_state_and_gradients[dbn]",
    ),
    Mutant(
        "sample: instance norm measures the batch", "_norms/group.py",
        "checks.other_axes((0, *ops.features), ops.x.ndim)", "ops.others",
        "norms/test_battery.py::test_output_state_and_gradients[instance]",
    ),
    Mutant(
        "response: the threshold is zero", "_norms/response.py",
        "jnp.maximum(y, tau.astype(y.dtype))", "jnp.maximum(y, 0 * tau.astype(y.dtype))",
        "norms/test_battery.py::test_output_state_and_gradients[frn]",
    ),
    Mutant(
        "response: the longer half of an even window comes after", "_norms/response.py",
        "(number // 2, (number - 1) // 2)", "((number - 1) // 2, number // 2)",
        "norms/test_battery.py::test_output_state_and_gradients[lrn]",
    ),
    Mutant(
        "response: by the sum of lengths, not their mean", "_norms/response.py",
        "length.sum(ops.features, keepdims=True) / seen",
        "length.sum(ops.features, keepdims=True) / jnp.ones_like(seen)",
        "norms/test_battery.py::test_output_state_and_gradients[grn]",
    ),
    Mutant(
        "evo: v is forgotten", "_norms/evonorm.py",
        "(t if v is None else t * checks.widened(v, t)) +", "t +",
        "norms/test_battery.py::test_output_state_and_gradients[evonorm_b0]",
    ),
    Mutant(
        "mixtures: weights that are no shares of one", "_norms/switchable.py",
        "share = jax.nn.softmax(", "share = jax.nn.sigmoid(",
        "norms/test_battery.py::test_output_state_and_gradients[switchable]",
    ),
    Mutant(
        "scaling: the part that is measured is the whole", "_norms/scale.py",
        "moments(lax.slice_in_dim(ops.x, 0, n, axis=channel)", "moments(lax.slice_in_dim(ops.x, 0, None, axis=channel)",
        "norms/test_battery.py::test_output_state_and_gradients[prms]",
    ),
    Mutant(
        "weights: the layer itself is called", "nnx/_copies.py",
        "yield copy", "yield module",
        "modules/test_nnx_weights.py::test_a_layer_changes_what_it_would_by_itself_and_nothing_else[WeightNorm]",
    ),
    Mutant(
        "weights: what the layer reduction is lost", "nnx/_copies.py",
        "setattr(own, name, value)", "pass",
        "modules/test_nnx_weights.py::test_a_layer_changes_what_it_would_by_itself_and_nothing_else[WeightNorm]",
    ),
    Mutant(
        "weights: all are taken for the inputs of a feature", "_norms/weights.py",
        "inputs = math.prod(w.shape[a] for a in measured)", "inputs = math.prod(w.shape)",
        "norms/test_family.py::test_gradients_of_weight_standardization[scaled_ws]",
    ),
    Mutant(
        "recurrent: examples past their end are measured", "linen/_recurrent.py",
        "mask = (step < lengths)[..., None]", "mask = (step <= lengths)[..., None]",
        "modules/test_recurrent.py::test_statistics_are_of_each_step_and_of_the_examples_that_last",
    ),
    Mutant(
        "recurrent: padding counts as seen", "nnx/_recurrent.py",
        "jnp.where(mask.any(), now + 1, 0)", "now + 1",
        "modules/test_recurrent.py::test_steps_past_the_longest_seen_reuse_the_last[nnx]",
    ),
    Mutant(
        "ghost: the shared state without the variance between slices", "_core/moments.py",
        "m.count * (m.var + abs_sq(d))", "m.count * (m.var + 0 * abs_sq(d))",
        "devices/test_sync.py::test_ghost_batches_stay_on_their_device_and_the_state_is_of_all[vmap]",
    ),
    Mutant(
        "pivot: the guard of those that differ is off", "_collectives/psum.py",
        "jnp.where(total == n * mark, t, jnp.nan)", "jnp.where(total == total, t, jnp.nan)",
        "devices/test_sync.py::test_running_means_that_differ_raise_or_are_nan_and_never_numbers[vmap]",
    ),
    Mutant(
        "pivot: features that all differ as much pass", "_collectives/psum.py",
        "_scrambled(lax.bitcast_convert_type(word.reshape(-1), jnp.uint32) ^ place)",
        "(lax.bitcast_convert_type(word.reshape(-1), jnp.uint32) * place)",
        "devices/test_sync.py::test_no_difference_of_running_means_is_overlooked[all features by as much]",
    ),
    Mutant(
        "pool: devices weigh the same", "_core/state.py",
        "jnp.maximum(jnp.asarray(count, float), weight * TINY_WEIGHT)", "weight",
        "devices/test_pooling.py::test_the_pool_is_of_all_data[0.0-vmap]",
    ),
    Mutant(
        "pool: who has seen nothing weighs as who has", "_core/state.py",
        "jnp.maximum(jnp.asarray(counts, float), TINY_WEIGHT)", "jnp.maximum(jnp.asarray(counts, float), 1)",
        "devices/test_pooling.py::test_who_has_seen_nothing_weighs_nothing",
    ),
    Mutant(
        "accumulation: the last micro-batch's moments stand for all", "_core/accumulate.py",
        "**vars(reduce(m))", "**vars(jax.tree.map(lambda t: t[-1], m))",
        "devices/test_accumulate.py::test_it_is_a_loop_with_one_step_of_the_state[linen-masked]",
    ),
    Mutant(
        "accumulation: contiguous micro-batches", "_core/accumulate.py",
        "lax.reshape(t, (n, k, *t.shape[1:]), out_sharding=spec).swapaxes(0, 1)", "t.reshape((k, n, *t.shape[1:]))",
        "devices/test_accumulate.py::test_micro_batches_are_strided",
    ),
    Mutant(
        "accumulation: what weighs nothing is multiplied by zero", "_core/accumulate.py",
        "return jnp.where(w > 0, w.astype(dtype) * jnp.asarray(t, dtype), jnp.zeros((), dtype))",
        "return w.astype(dtype) * jnp.asarray(t, dtype)",
        "devices/test_accumulate.py::test_means_over_the_valid_are_weighed",
    ),
    Mutant(
        "export: what a mask repeats is not counted", "_masks.py",
        "repeats = num_elements([shape[a] for a in axes if mask.shape[a] == 1], dtype)",
        "repeats = num_elements([n for a in axes if mask.shape[a] == 1 and isinstance(n := shape[a], int)], dtype)",
        "core/test_transforms.py::test_exported_masks[mask1]",
    ),
    Mutant(
        "recalibrate: batches are not counted together", "_lifecycle/population.py",
        '"count": new.count,', '"count": count,',
        "lifecycle/test_recalibrate.py::test_uneven_batches_weigh_by_their_examples",
    ),
    Mutant(
        "recalibrate: the variance between batches is left out", "_lifecycle/population.py",
        '    if law == "merge":', "    if not law:",
        "lifecycle/test_recalibrate.py::test_uneven_batches_weigh_by_their_examples",
    ),
    Mutant(
        "recalibrate: the variance between batches is counted", "_lifecycle/population.py",
        '    if law == "merge":', "    if law:",
        "lifecycle/test_recalibrate.py::test_the_prior_is_weighed_against_examples[average]",
    ),
    Mutant(
        "recalibrate: the prior is weighed against positions", "_lifecycle/population.py",
        "Moments(jnp.float32(examples), ", 'Moments(measured["count"], ',
        "lifecycle/test_recalibrate.py::test_the_prior_is_weighed_against_examples[merge]",
    ),
    Mutant(
        "recalibrate: one of two masks is ignored", "_lifecycle/refusals.py",
        "valid if own is None else valid & own", "valid",
        "lifecycle/test_recalibrate.py::test_masks_of_positions_at_the_call_and_by_valid_both_count",
    ),
    Mutant(
        "recalibrate: what is not finite is taken", "_lifecycle/recalibrate.py",
        "    if not all(bool(jnp.isfinite", "    if calls < 0 and not all(bool(jnp.isfinite",
        "lifecycle/test_recalibrate.py::test_what_is_not_finite_or_not_valid_keeps_the_old_statistics",
    ),
    Mutant(
        "by_layer: later passes normalize by the batch", "_lifecycle/recalibrate.py",
        'one_pass(before, batches, "running")', 'one_pass(before, batches, "batch")',
        "lifecycle/test_recalibrate.py::test_uneven_batches_weigh_by_their_examples",
    ),
    Mutant(
        "by_layer: a stack is one norm", "_lifecycle/recalibrate.py",
        'measured[path]["mean"].size // size', "1",
        "lifecycle/test_recalibrate.py::test_models_that_know_nothing_of_it[lifted_last-True]",
    ),
    Mutant(
        "contexts: jit does not know of freeze", "linen/_intercept.py",
        "ACTIVE(tuple(r.entry for r in _stack.records))",
        "ACTIVE(tuple(r.entry for r in _stack.records if not isinstance(r.entry, Freeze)))",
        "lifecycle/test_contexts.py::test_nested_in_both_orders_then_each_alone_on_one_jitted_function[False]",
    ),
    Mutant(
        "contexts: jit knows of the last alone", "linen/_intercept.py",
        "ACTIVE(tuple(r.entry for r in _stack.records))", "ACTIVE((record.entry,))",
        "lifecycle/test_contexts.py::test_nested_in_both_orders_then_each_alone_on_one_jitted_function[True]",
    ),
    Mutant(
        "contexts: those that began later are not put back", "linen/_intercept.py",
        "    _enter(later)\n", "    _stack.records.extend(later)\n",
        "lifecycle/test_contexts.py::test_contexts_that_generators_hold_may_end_in_any_order",
    ),
    Mutant(
        "contexts: what Flax captures is captured twice", "linen/_twins.py",
        '("intermediates", "__call__")', '("intermediates", "")',
        "lifecycle/test_contexts.py::test_what_flax_captures_and_what_is_sown_is_the_same",
    ),
    Mutant(
        "upgrade: without options it is Flax's", "_lifecycle/overrides.py",
        "bool(self.upgraded or", "bool(self.options or",
        "lifecycle/test_contexts.py::test_an_upgrade_without_options_runs_through_bnjax",
    ),
    Mutant(
        "freeze: the state steps", "linen/_twins.py",
        "steps=freeze.update", "steps=True",
        "lifecycle/test_freeze.py::test_state_outputs_and_gradients_in_every_way[flax]",
    ),
    Mutant(
        "freeze: the state of other norms steps", "linen/_intercept.py",
        "    if not freeze.update:", "    if freeze.update:",
        "lifecycle/test_freeze.py::test_state_outputs_and_gradients_in_every_way[renorm]",
    ),
    Mutant(
        "freeze: parameters have a gradient", "linen/_twins.py",
        "return lax.stop_gradient(super().param(*args, **kwargs))", "return super().param(*args, **kwargs)",
        "lifecycle/test_freeze.py::test_state_outputs_and_gradients_in_every_way[flax]",
    ),
    Mutant(
        "swap: the least number of groups that divides", "_norms/group.py",
        "return max(n for n", "return min(n for n",
        "lifecycle/test_swap.py::test_groups_are_the_largest_divisor[48-32-24]",
    ),
    Mutant(
        "tent: all parameters move", "linen/_tent.py",
        'mask = norm_params_mask(variables.get("params", {}))',
        'mask = jax.tree.map(lambda _: True, variables.get("params", {}))',
        "lifecycle/test_tent.py::test_only_parameters_of_norms_move_and_the_entropy_falls[own]",
    ),
    Mutant(
        "contexts: a norm that is called late stays uncalled", "linen/_intercept.py",
        "    if norm.path in record.unreached:", "    if norm.path in record.unselected:",
        "lifecycle/test_contexts.py::test_methods_of_the_root_that_end_early_do_not_make_norms_unreached",
    ),
    Mutant(
        "fold: a second use of a value on the way", "_lifecycle/pairs.py",
        "if len(users) > 1:\n            return call._replace(why=f\"its input",
        "if not users:\n            return call._replace(why=f\"its input",
        "lifecycle/test_fold.py::test_refused[hidden]",
    ),
    Mutant(
        "fold: a tied kernel", "_lifecycle/pairs.py",
        "if used != times:", "if not used:",
        "lifecycle/test_fold.py::test_refused[tied kernel]",
    ),
    Mutant(
        "fold: stacked otherwise", "_lifecycle/pairs.py",
        "if stacks == {kernel.stack} and mapped", "if mapped",
        "lifecycle/test_fold.py::test_under_vmap[0-None-not stacked as]",
    ),
    Mutant(
        "fold: the norm that stays has a factor", "_lifecycle/fold.py",
        "return np.asarray(1, dtype) - np.asarray(self.epsilon, dtype)", "return np.asarray(1, dtype)",
        "lifecycle/test_fold.py::test_by_hand",
    ),
    Mutant(
        "fold: no warning", "_lifecycle/fold.py",
        "FAR = 10.0", "FAR = 100.0",
        "lifecycle/test_fold.py::test_bfloat16_far_from_zero_is_warned_of[50.0-True]",
    ),
    Mutant(
        "fold: arrays end up elsewhere", "_lifecycle/fold.py",
        "return jax.device_put(value, old.sharding) if old.committed else", "return",
        "lifecycle/test_fold.py::test_dtypes_places_and_containers_stay",
    ),
    Mutant(
        "convert: a flatten stays in PyTorch's order", "_lifecycle/convert/imports.py",
        'if dialect == "torch":', 'if dialect == "":',
        "convert/test_golden.py::test_arrays_of_pytorch_and_back[dense after flatten of the input]",
    ),
    Mutant(
        "convert: Keras gets PyTorch's order", "_lifecycle/convert/imports.py",
        'if dialect == "torch":', "if dialect:",
        "convert/test_arrays.py::test_keras_gets_no_other_order_and_no_transpose",
    ),
    Mutant(
        "convert: transposed convolutions are not flipped", "_lifecycle/convert/layouts.py",
        "return np.flip(w, tuple(range(w.ndim - 2)))", "return w",
        "convert/test_golden.py::test_arrays_of_pytorch_and_back[transposed]",
    ),
    Mutant(
        "convert: weight norm is put together without its direction's length", "_lifecycle/convert/values.py",
        "(wide(length) / norm)", "wide(length)",
        "convert/test_golden.py::test_arrays_of_pytorch_and_back[weight norm, into a plain layer]",
    ),
    Mutant(
        "convert: 1 + scale is a scale", "_lifecycle/convert/offsets.py",
        "return float(any(", "return 0 * float(any(",
        "convert/test_arrays.py::test_the_scale_of_somebody_s_own_norm[1.0]",
    ),
    Mutant(
        "convert: arrays for PyTorch are views", "_lifecycle/convert/exports.py",
        'np.array(value, order="C")', "np.array(value)",
        "convert/test_arrays.py::test_arrays_are_in_c_order_because_safetensors_takes_that_for_granted",
    ),
    Mutant(
        "doctor: what follows a stale norm is blamed", "_lifecycle/doctor/examine.py",
        'run(pairs, nothing, batch, valid, "batch")', 'run(pairs, nothing, batch, valid, "running")',
        "lifecycle/test_doctor.py::test_a_fault_is_found_where_it_is_and_nothing_else[linen-stale]",
    ),
    Mutant(
        "doctor: chance is blamed", "_lifecycle/doctor/limits.py",
        "NOISE = 0.15, 1.3, 3.0", "NOISE = 0.15, 1.3, 0.0",
        "lifecycle/test_doctor.py::test_a_fault_is_found_where_it_is_and_nothing_else[linen-chance]",
    ),
    Mutant(
        "doctor: one cause, two findings", "_lifecycle/doctor/examine.py",
        "if any(map(_explains, others)) or not self", "if not self",
        "lifecycle/test_doctor.py::test_a_fault_is_found_where_it_is_and_nothing_else[linen-stale]",
    ),
    Mutant(
        "doctor: a warm-up decays nothing", "_lifecycle/doctor/decay.py",
        "STEPS = 64", "STEPS = 1",
        "lifecycle/test_doctor.py::test_a_fault_is_found_where_it_is_and_nothing_else[linen-decayed]",
    ),
    Mutant(
        "doctor: a dropout before another norm", "_lifecycle/doctor/surroundings.py",
        'NORMALIZED = ("norm_out", "other_norm_out")', 'NORMALIZED = ("norm_out",)',
        "lifecycle/test_doctor.py::test_a_dropout_counts_for_the_first_norm_behind_it",
    ),
    Mutant(
        "doctor: a stack is one norm", "_lifecycle/doctor/facts.py",
        "if values.size == self.features or not axes:", "if axes or not axes:",
        "lifecycle/test_doctor.py::test_one_norm_of_a_stack[0-False]",
    ),
    Mutant(
        "doctor: the variance between batches is left out", "_lifecycle/doctor/facts.py",
        "return self.within + self._pooled(", "return self.within + 0 * self._pooled(",
        "lifecycle/test_doctor.py::test_moments_of_uneven_batches",
    ),
]  # fmt: skip


def copied(folder: Path) -> Path:
    """What the tests need, in `folder`."""
    without = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("bnjax", "docs", "experiments", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=without)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


class Found:
    """A plugin of pytest: what became of each test, by its name, and of what kind the last error was."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.asserted = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.outcomes[report.nodeid] = report.outcome

    def pytest_exception_interact(self, call: pytest.CallInfo) -> None:
        self.asserted = call.excinfo is not None and call.excinfo.errisinstance(AssertionError)


def of_the_project(name: str) -> bool:
    return name.partition(".")[0] in ("bnjax", "experiments", "tests", "conftest")


def _run(folder: Path, tests: list[str], answer: Connection) -> None:
    """In a process of its own, in which nothing of the project is imported when pytest begins."""
    for name in [*filter(of_the_project, sys.modules)]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)  # for the processes that a test starts
    found = Found()
    arguments = ["-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *(f"tests/{t}" for t in tests)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = int(pytest.main(arguments, plugins=[found]))
    answer.send((status, found.outcomes, found.asserted, said.getvalue()))


def run(folder: Path, tests: list[str]) -> tuple[int, dict[str, str], bool, str]:
    """Pytest's exit status, the outcome of each test, if an assertion failed, and what it says."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_run, args=(folder, tests, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        found = (process.exitcode, {}, False, f"The process ended with {process.exitcode}.")
    process.join()
    return found


def verdict(mutant: Mutant) -> str:
    """`caught`, or what went wrong. Only an assertion of the named test counts: no other error on the way."""
    with tempfile.TemporaryDirectory() as name:
        file = copied(Path(name)) / "bnjax" / mutant.file
        source = file.read_text()
        if source.count(mutant.old) != 1:
            return f"its line occurs {source.count(mutant.old)} times in {mutant.file}"
        file.write_text(source.replace(mutant.old, mutant.new))
        status, outcomes, asserted, _ = run(Path(name), [mutant.test])
    if status == 0:
        return "SURVIVED"
    if status != 1 or outcomes != {f"tests/{mutant.test}": "failed"}:
        return f"pytest ended with {status}, not with a failure of the test"
    return "caught" if asserted else "broken, not wrong: the test ended with another error"


def unmutated(mutants: list[Mutant]) -> str:
    tests = sorted({m.test for m in mutants})
    with tempfile.TemporaryDirectory() as name:
        status, outcomes, _, said = run(copied(Path(name)), tests)
    passed = status == 0 and outcomes == {f"tests/{t}": "passed" for t in tests}
    return f"{len(tests)} tests pass without a fault" if passed else f"WITHOUT A FAULT:\n{said}"


def main(word: str = "") -> int:
    mutants = [m for m in MUTANTS if word in m.name]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sound = pool.submit(unmutated, mutants)
        verdicts = list(pool.map(verdict, mutants))
    width = max(len(m.name) for m in mutants)
    for mutant, found in zip(mutants, verdicts, strict=True):
        print(f"{mutant.name:{width}}  {found:8}  {mutant.test}")
    caught = verdicts.count("caught")
    print(f"{caught} of {len(mutants)} faults caught; {sound.result()}")
    return int(caught < len(mutants) or "WITHOUT" in sound.result())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
