"""What happens to the norms of an nnx model after it is built. All of it is in `bnjax.nnx`, too."""

from bnjax._lifecycle.doctor.diagnosis import Diagnosis as Diagnosis
from bnjax._lifecycle.doctor.finding import Finding as Finding
from bnjax._lifecycle.report import Report as Report
from bnjax._lifecycle.report import Row as Row
from bnjax._lifecycle.summary import NormRow as NormRow
from bnjax._lifecycle.summary import Summary as Summary
from bnjax.nnx._contexts import freeze as freeze
from bnjax.nnx._contexts import swap as swap
from bnjax.nnx._contexts import unfreeze as unfreeze
from bnjax.nnx._contexts import upgrade as upgrade
from bnjax.nnx._convert import from_keras as from_keras
from bnjax.nnx._convert import from_torch as from_torch
from bnjax.nnx._convert import to_torch as to_torch
from bnjax.nnx._doctor import doctor as doctor
from bnjax.nnx._fold import fold as fold
from bnjax.nnx._labels import frozen_labels as frozen_labels
from bnjax.nnx._recalibrate import adapt as adapt
from bnjax.nnx._recalibrate import recalibrate as recalibrate
from bnjax.nnx._summary import summary as summary
from bnjax.nnx._tent import tent as tent
