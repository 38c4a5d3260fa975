"""torch.optim's optimizers, each step one pass over memory; `from fusedopt import AdamW` is the whole migration."""

# torch goes first: the extension links against its libraries and shares its OpenMP runtime.
import torch as _torch

from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam
from .adamax import Adamax
from .adamw import AdamW
from .adan import Adan
from .asgd import ASGD
from .capabilities import capabilities
from .clipping import clip_grad_norm_, local_grad_norm, norm_from_local
from .compiled import compile_rule
from .generic import GenericOptimizer, WeightDecay
from .lamb import LAMB
from .lars import LARS
from .lbfgs import LBFGS
from .lion import Lion
from .nadam import NAdam
from .precision import StateDtype
from .radam import RAdam
from .release import GradientRelease, step_in_backward
from .replace import replace
from .rmsprop import RMSprop
from .rprop import Rprop
from .scaler import GradScaler
from .sgd import SGD
from .sparse_adam import SparseAdam

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "GenericOptimizer",
    "GradScaler",
    "GradientRelease",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "StateDtype",
    "WeightDecay",
    "capabilities",
    "clip_grad_norm_",
    "compile_rule",
    "local_grad_norm",
    "norm_from_local",
    "replace",
    "step_in_backward",
]
if hasattr(_torch.optim, "Muon"):  # from torch 2.9 on
    from .muon import Muon

    __all__ += ["Muon"]

__version__ = "0.1.0"
