"""torch.optim's optimizers, each step one pass over memory; `from fusedopt import AdamW` is the whole migration."""

# torch goes first: the extension links against its libraries and shares its OpenMP runtime.
import torch as _torch  # noqa: F401  (isort: skip)

from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .adamax import Adamax
from .adan import Adan
from .asgd import ASGD
from .capabilities import capabilities
from .lamb import LAMB
from .lars import LARS
from .lion import Lion
from .nadam import NAdam
from .radam import RAdam
from .replace import replace
from .rmsprop import RMSprop
from .rprop import Rprop
from .sgd import SGD

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "capabilities",
    "replace",
]
__version__ = "0.1.0"
