"""What kube-controller-manager and kube-scheduler do for a lab, in one process.

Every controller has the same shape: informers and indexes (`cluster`, `index`) say what is; a pure
`plan_*` function says what should be done; a few lines apply that through the API. A new
controller is a module and a line in `manager.CONTROLLERS`.
"""

from podwire.controllers.config import ControllerConfig
from podwire.controllers.manager import run

__all__ = ["ControllerConfig", "run"]
