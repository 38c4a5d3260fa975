"""What this build of fusedopt can do on this machine, and why."""

from __future__ import annotations

from typing import Any

import torch

from . import _C


def capabilities() -> dict[str, Any]:
    """Report the engines built, the one chosen and the reason.

    Returns:
        A dict with "cpu" (built, supported and chosen instruction sets, the reason for the choice, threads), "cuda"
        (built or not, for which architectures, and what steps tensors on the current device), "rules" and "torch" (its
        version).

    Example:
        >>> cpu = fusedopt.capabilities()["cpu"]
        >>> cpu["chosen"] in cpu["built"]
        True
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
        "cuda": _cuda(),
        "rules": sorted(_C.rules()),
        "torch": torch.__version__,
    }


def _cuda() -> dict[str, Any]:
    built = _C.cuda_built()
    if not built:
        reason = f"{_C.cuda_built_for()}; CUDA tensors are stepped by torch's own code"
    elif not torch.cuda.is_available():
        why = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        reason = f"nothing to run on: the installed torch {why}"
    elif obstacle := _C.cuda_obstacle(torch.cuda.current_device()):
        reason = f"CUDA tensors are stepped by torch's own code: {obstacle}"
    else:
        reason = "CUDA tensors are stepped by this package's kernels"
    return {"built": built, "architectures": _C.cuda_built_for().split() if built else [], "reason": reason}
