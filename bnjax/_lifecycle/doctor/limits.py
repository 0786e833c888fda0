"""The limits of all rules, each with its reason. `python -m tests.doctor_table` prints what they find and what not."""

# stale. The running mean is off by so many standard deviations, the running variance by this factor, in the feature in
# the middle: five times as far as in healthy models, where they are off by 0.02 and 1.04 at most. And by more than
# `NOISE` standard errors, so that few or small batches blame nothing. The second pair is an error.
MEAN_OFF, VAR_FACTOR, NOISE = 0.15, 1.3, 3.0
MEAN_FAR, VAR_FAR = 1.0, 3.0
# dead-channels, epsilon-dominates, scale-gone: a note where any feature has it, a warning from this part on.
PART = 0.25
EPSILON = 0.1  # of variance and epsilon together: 5 % of the output
SCALE = 1e-3  # of the 1 at which scales begin
# few-values: the standard deviation of a variance is a third of it at 16 values, half of it at 8; of 2 values nothing
# is left but which is the larger.
FEW_NOTE, FEW_WARNING, FEW_ERROR = 15, 7, 2
# mean-far-from-zero, |mean| / std. Flax's difference of two means in float32 is off by 6e-3 in the output at 100, by
# 0.4 at 1000; bfloat16 has 8 bits, so that at 256 nothing is left of x itself.
FAR_NOTE, FAR_WARNING, FAR_LOW = 100.0, 300.0, 64.0
# momentum-torch. PyTorch's usual 0.1, and 0.3 and less, keep less than one batch in three.
MOMENTUM = 0.3
# dropout-before-norm. In training dropout makes the variance about its zeros up to 1 / (1 - rate) as large: 1.25.
DROPOUT = 0.2
# replicas-differ: more than rounding.
APART, PARAMETERS_APART = 1e-3, 1e-5
# train-eval-gap. Outputs differ by so much of their own standard deviation. In batches of n examples, those of healthy
# models differ by chance, by 0.8 to 1.6 / sqrt(n). The limit is `GAP_CHANCE` / sqrt(n), and `GAP` at least.
GAP, GAP_CHANCE = 0.25, 3.0
