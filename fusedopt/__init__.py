"""torch.optim's optimizers, each step one pass over memory; `from fusedopt import AdamW` is the whole migration."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

# torch goes first: the extension links against its libraries and shares its OpenMP runtime.
import torch as _torch

from . import _extension as _extension
from . import functional as functional
from ._capabilities import capabilities
from ._clipping import clip_grad_norm_, local_grad_norm, norm_from_local
from ._compiled import compile_rule
from ._core.lacking import refusal as _refusal
from ._core.precision import StateDtype
from ._foreign import load_foreign
from ._foreign_back import foreign_state_dict
from ._release import GradientRelease, step_in_backward
from ._replace import replace
from ._scaler import GradScaler
from .optimizers.adabelief import AdaBelief
from .optimizers.adadelta import Adadelta
from .optimizers.adafactor import Adafactor
from .optimizers.adagrad import Adagrad
from .optimizers.adam import Adam
from .optimizers.adam_atan2 import AdamAtan2
from .optimizers.adamax import Adamax
from .optimizers.adamw import AdamW
from .optimizers.adamw_schedule_free import AdamWScheduleFree
from .optimizers.adan import Adan
from .optimizers.ademamix import AdEMAMix
from .optimizers.adopt import ADOPT
from .optimizers.asgd import ASGD
from .optimizers.generic import GenericOptimizer
from .optimizers.lamb import LAMB
from .optimizers.laprop import LaProp
from .optimizers.lars import LARS
from .optimizers.lbfgs import LBFGS
from .optimizers.lion import Lion
from .optimizers.mars import MARS
from .optimizers.nadam import NAdam
from .optimizers.nadamw import NAdamW
from .optimizers.novograd import NovoGrad
from .optimizers.prodigy import Prodigy
from .optimizers.radam import RAdam
from .optimizers.radam_schedule_free import RAdamScheduleFree
from .optimizers.rmsprop import RMSprop
from .optimizers.rprop import Rprop
from .optimizers.sgd import SGD
from .optimizers.sgd_schedule_free import SGDScheduleFree
from .optimizers.sophia import SophiaG
from .optimizers.sparse_adam import SparseAdam
from .optimizers.stable_adamw import StableAdamW
from .optimizers.weight_decay import WeightDecay

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "MARS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "GenericOptimizer",
    "GradScaler",
    "GradientRelease",
    "LaProp",
    "Lion",
    "NAdam",
    "NAdamW",
    "NovoGrad",
    "Prodigy",
    "RAdam",
    "RAdamScheduleFree",
    "RMSprop",
    "Rprop",
    "SGDScheduleFree",
    "SophiaG",
    "SparseAdam",
    "StableAdamW",
    "StateDtype",
    "WeightDecay",
    "capabilities",
    "clip_grad_norm_",
    "compile_rule",
    "foreign_state_dict",
    "load_foreign",
    "local_grad_norm",
    "norm_from_local",
    "replace",
    "step_in_backward",
]
if hasattr(_torch.optim, "Muon"):  # from torch 2.9 on
    from .optimizers.muon import Muon

    __all__ += ["Muon"]
elif not _TYPE_CHECKING:
    __getattr__ = _refusal(__name__, "Muon", "torch.optim.Muon came with 2.9")

__version__ = "0.1.0"
