"""torch.optim's optimizers, each step one pass over memory; `from fusedopt import AdamW` is the whole migration."""

# torch goes first: the extension links against its libraries and shares its OpenMP runtime.
import torch as _torch  # noqa: F401  (isort: skip)

from .adam import Adam, AdamW
from .capabilities import capabilities
from .generic import GenericOptimizer, WeightDecay
from .replace import replace
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "GenericOptimizer", "RMSprop", "WeightDecay", "capabilities", "replace"]
__version__ = "0.1.0"
