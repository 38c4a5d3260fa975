"""What this build of fusedopt can do on this machine, and why."""

from __future__ import annotations

from typing import Any

import torch

from . import _C


def capabilities() -> dict[str, Any]:
    """Report the engines built, the one chosen and the reason.

    Returns:
        A dict with "cpu" (built, supported and chosen instruction sets, the reason for the choice, threads), "cuda"
        (built or not, and why), "rules" and "torch" (its version).

    Example:
        >>> fusedopt.capabilities()["cpu"]["built"][0]
        'generic'
    """
    chosen, reason = _C.chosen_isa()
    return {
        "cpu": {
            "built": _C.built_isas(),
            "supported": _C.supported_isas(),
            "chosen": chosen,
            "reason": reason,
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "built": False,
            "reason": "this version has no CUDA engine; CUDA tensors are stepped by torch's own code",
        },
        "rules": sorted(_C.rules()),
        "torch": torch.__version__,
    }
