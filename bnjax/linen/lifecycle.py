"""What happens to the norms of a linen model after it is built. All of it is in `bnjax.linen`, too."""

from bnjax._lifecycle.doctor.diagnosis import Diagnosis as Diagnosis
from bnjax._lifecycle.doctor.finding import Finding as Finding
from bnjax._lifecycle.report import Report as Report
from bnjax._lifecycle.report import Row as Row
from bnjax._lifecycle.summary import NormRow as NormRow
from bnjax._lifecycle.summary import Summary as Summary
from bnjax.linen._contexts import freeze as freeze
from bnjax.linen._contexts import swap as swap
from bnjax.linen._contexts import upgrade as upgrade
from bnjax.linen._convert import from_keras as from_keras
from bnjax.linen._convert import from_torch as from_torch
from bnjax.linen._convert import to_torch as to_torch
from bnjax.linen._doctor import doctor as doctor
from bnjax.linen._fold import fold as fold
from bnjax.linen._labels import frozen_labels as frozen_labels
from bnjax.linen._recalibrate import adapt as adapt
from bnjax.linen._recalibrate import recalibrate as recalibrate
from bnjax.linen._summary import summary as summary
from bnjax.linen._tent import tent as tent
