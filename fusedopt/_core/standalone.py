"""What optimizers share that torch.optim does not have: constructor checks, and no torch step to fall back on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch.optim.optimizer import ParamsT

from .. import _C
from .arguments import NO_OPTIONS, Options, check_common, refuse_text
from .optimizer import FusedStep, Leftover
from .wrapped import refuse_wrapped


class Standalone(FusedStep):
    """A fused optimizer without a twin in torch.optim: `given` is the hyper-parameters of its rule and its flags."""

    # Of a rule that the package does not have.
    _hyper_names: ClassVar[Sequence[str]] = ()

    def __init__(
        self,
        params: ParamsT,
        given: dict[str, Any],
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        options: Options = NO_OPTIONS,
    ) -> None:
        # As in torch's constructors, before the params are looked at.
        self._check_group(given)
        super().__init__(params, given, foreach=foreach, fused=fused, options=options)

    @classmethod
    def _torch_arguments(cls, given: dict[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in given.items() if name not in ("foreach", "fused")}
        # torch adds this key to the defaults of a copy, and means by it what no optimizer here can do.
        return {"defaults": {**own, "differentiable": False}}

    def _check_group(self, group: dict[str, Any]) -> None:
        names = self._hyper_names or _hypers_of(type(self))
        refuse_text({name: group[name] for name in names if isinstance(group.get(name), str)})
        check_common(group, sum(name.startswith("betas.") for name in names))

    def _step_leftover(self, leftover: Leftover, divisor: float | torch.Tensor | None = None) -> bool | None:
        refuse_wrapped((p for _, params in leftover for p in params), self.state)
        try:
            self._refuse_shards(leftover)
        except RuntimeError:
            self._planned().give_up()
            raise
        groups = [{**self.param_groups[index], "params": params} for index, params in leftover]
        with self._only(groups), self._plain_grads(groups, divisor), self._float_counters(groups):
            refused = self._planned().step(self)
        # What a step concludes may be kept in its groups.
        for (index, _), group in zip(leftover, groups, strict=True):
            self.param_groups[index].update((key, value) for key, value in group.items() if key != "params")
        if refused:
            raise RuntimeError(self._refusal(groups[refused[0][0]], [p for _, params in refused for p in params]))
        return None

    @contextmanager
    def _float_counters(self, groups: list[dict[str, Any]]) -> Iterator[None]:
        """Counters of other dtypes, which torch's optimizers count in as well, as the engine can take them."""
        lent: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        for state in (self.state.get(p, {}) for group in groups for p in group["params"]):
            for name in _C.counters(self._rule):
                counter = state.get(name)
                if isinstance(counter, torch.Tensor) and counter.dtype not in (torch.float32, torch.float64):
                    lent.append((state, name, counter))
                    state[name] = counter.float()
        try:
            yield
        finally:
            for state, name, counter in lent:
                state[name] = counter.copy_(state[name])

    def _refusal(self, group: dict[str, Any], params: list[torch.Tensor]) -> str:
        name = type(self).__name__
        if group.get("differentiable"):
            return f"{name} cannot be differentiated: set 'differentiable' to False in its param_groups"
        if any(p.grad is not None and p.grad.is_sparse for p in params):
            return f"{name} does not support sparse gradients; SparseAdam does"
        return (
            f"{name} steps ordinary tensors on the CPU and on CUDA devices, and one of its params or gradients is a "
            f"{type(params[0]).__name__} on {params[0].device}, which it would leave to torch's step if torch had one"
        )


def _hypers_of(cls: type[Standalone]) -> Sequence[str]:
    facts = _C.rules().get(cls._rule)
    if facts is None:
        raise RuntimeError(
            f"{cls.__name__} is of rule {cls._rule!r}, which was not in csrc/rules when the package was built; run "
            "there: make build"
        )
    return list(facts["hypers"])
