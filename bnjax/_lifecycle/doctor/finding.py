"""One thing that is wrong, and what to do about it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES = ("error", "warning", "note")

# By the code of a finding; those that explain most come first.
REMEDIES = {
    "not-finite": "Some number is infinite or NaN, and so is all that comes after it. Go back to a checkpoint from "
    "before, and train on with a smaller learning rate or with clipped gradients. If only statistics are lost, "
    "`recalibrate`.",
    "replicas-differ": "The devices do not have the same values. For statistics: give the norms an `axis_name`, or "
    "put them together before evaluation with `bnjax.sync_batch_stats`. For parameters: average gradients over the "
    "devices.",
    "never-updated": "The running statistics are those of `init`. In training, keep the new ones: in linen with "
    "`mutable=['batch_stats']`, in nnx after `model.train()`. To measure them now: `recalibrate`.",
    "low-precision-state": "In this dtype the steps of a running average are lost in rounding, and it stands still. "
    "Keep `batch_stats` in float32, then `recalibrate`.",
    "momentum-torch": "`momentum` is the part that is kept; PyTorch's is one minus it. Write 0.9 where PyTorch has "
    "0.1, then `recalibrate`.",
    "few-values": "Statistics of so few values are mostly chance. Use larger batches, measure over devices "
    "(`axis_name`), or use a norm that needs no batch: `swap('group')`.",
    "stale": "The running statistics are not those of these batches. After weights were averaged, pruned or loaded, "
    "or on other data: `recalibrate` or `adapt`. If training has only just begun, go on, or lower `momentum`.",
    "dead-channels": "There the norm is given a constant, and returns its bias. Look at the layer before: relus that "
    "are never on, weights of zero, an input that is always the same.",
    "epsilon-dominates": "The variance of the input is so small that epsilon decides the scale of the output. Scale "
    "up what comes before, or lower `epsilon`.",
    "mean-far-from-zero": "The variance is lost in rounding. Subtract a constant before the norm, or use bnjax with "
    "`pivot='sample'`. In bfloat16, compute what comes before in float32.",
    "dropout-before-norm": "In training, dropout makes the variance larger than it is at evaluation. Move it behind "
    "the last norm, or `recalibrate` for evaluation (arXiv 1801.05134).",
    "scale-gone": "There the norm multiplies by nearly nothing. Before training, `scale_init` may want it so. "
    "Afterwards, look for weight decay on the scale, or lower the learning rate.",
    "decayed": "Weight decay pulls the norm's parameters to zero. Leave them out: `optax.adamw(..., mask=...)` with "
    "`norm_params_mask`.",
    "bias-before-norm": "The norm takes the bias of the layer before away again. Write `use_bias=False` in that "
    "layer.",
    "train-eval-gap": "By its running statistics the model gives other outputs than by those of the batch, and no "
    "norm is to blame alone. Shuffle the batches, give each place a norm of its own, or measure all batches together: "
    "`recalibrate`.",
}  # fmt: skip


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
      path: of the module, joined by "/"; "" is the whole model, or the root.
      code: what it is.
      severity: `"error"`, the model is not what its training made of it; `"warning"`, it is worse than it could be;
        `"note"`, good to know.
      evidence: numbers, by name.
      remedy: what to do.
    """

    path: str
    code: str
    severity: Severity
    evidence: dict[str, Any]
    remedy: str


def finding(path: str, code: str, severity: Severity, **evidence: Any) -> Finding:
    """A finding with the remedy of its code."""
    return Finding(path, code, severity, evidence, REMEDIES[code])
