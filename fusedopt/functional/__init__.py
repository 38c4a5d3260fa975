"""The steps of torch's optimizers as functions over lists, as `torch.optim.functional` of torch 2.15 has them.

For whoever keeps params, gradients and states elsewhere than in an optimizer. The signatures are torch's and the bits
are those of the class: each function takes one step and writes params and states in place, in one pass over memory.
What the class leaves to torch's code (sparse gradients, subclasses that dispatch, other devices,
`differentiable=True`) the function leaves to torch's function. States may be of any dtype that the class stores them
in; codes, master weights and averages belong to the classes. Inside torch.compile a call is made as it is, at one
break of the graph.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

import torch as _torch

from .._core.lacking import refusal as _refusal
from ._adams import adam, adamax, adamw, nadam, radam
from ._others import asgd, rprop, sgd, sparse_adam
from ._squares import adadelta, adafactor, adagrad, rmsprop

__all__ = [
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sparse_adam",
]
if hasattr(_torch.optim, "Muon"):  # from torch 2.9 on
    from ._muon import muon

    __all__ += ["muon"]
elif not _TYPE_CHECKING:
    __getattr__ = _refusal(__name__, "muon", "torch.optim.Muon came with 2.9")
