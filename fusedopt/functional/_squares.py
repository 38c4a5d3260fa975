"""Steps over lists that divide by means or sums of squares and know no momentum by themselves."""

from torch import Tensor

from .._core.lists import Lists, step_lists
from ..optimizers.adadelta import Adadelta
from ..optimizers.adafactor import Adafactor
from ..optimizers.adagrad import Adagrad
from ..optimizers.rmsprop import RMSprop

_ADADELTA = Lists(
    Adadelta, "adadelta", "adadelta", {"square_avgs": "square_avg", "acc_deltas": "acc_delta", "state_steps": "step"}
)
_ADAFACTOR = Lists(
    Adafactor,
    "_adafactor",
    "adafactor",
    {"row_vars": "row_var", "col_vars": "col_var", "variances": "variance", "state_steps": "step"},
    may_lack=True,
)
_ADAGRAD = Lists(
    Adagrad, "adagrad", "adagrad", {"state_sums": "sum", "state_steps": "step"}, more={"initial_accumulator_value": 0.0}
)
_RMSPROP = Lists(
    RMSprop,
    "rmsprop",
    "rmsprop",
    {
        "square_avgs": "square_avg",
        "grad_avgs": "grad_avg",
        "momentum_buffer_list": "momentum_buffer",
        "state_steps": "step",
    },
    only_with={"grad_avgs": "centered", "momentum_buffer_list": "momentum"},
)


def adadelta(
    params: list[Tensor],
    grads: list[Tensor],
    square_avgs: list[Tensor],
    acc_deltas: list[Tensor],
    state_steps: list[Tensor],
    capturable: bool = False,
    foreach: bool | None = None,
    differentiable: bool = False,
    has_complex: bool = False,
    *,
    lr: float | Tensor,
    rho: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """A step of :class:`fusedopt.Adadelta` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        square_avgs: the running means of squared gradients, one for each param and of its shape; written.
        acc_deltas: the running means of squared updates, one for each param and of its shape; written.
        state_steps: the counters of steps, tensors of one element; advanced.
        capturable: let CUDA graphs capture the step. Default: False.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        has_complex: accepted for torch's sake; params say it. Default: False.
        lr: the learning rate, a number or a tensor of one element.
        rho: the factor of both running means, in [0, 1].
        eps: added to denominators.
        weight_decay: an L2 penalty.
        maximize: ascend.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> square_avg, acc_delta = torch.zeros(2), torch.zeros(2)
        >>> fusedopt.functional.adadelta(
        ...     [param], [grad], [square_avg], [acc_delta], [torch.tensor(0.0)],
        ...     lr=1.0, rho=0.75, eps=1e-2, weight_decay=0.0, maximize=False,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [0.8002, 2.1998]
    """
    step_lists(_ADADELTA, locals())


def adafactor(
    params: list[Tensor],
    grads: list[Tensor],
    row_vars: list[Tensor | None],
    col_vars: list[Tensor | None],
    variances: list[Tensor | None],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,
    *,
    d: float,
    lr: float | Tensor,
    beta2_decay: float,
    weight_decay: float,
    eps1: float | None,
    eps2: float,
    maximize: bool,
) -> None:
    """A step of :class:`fusedopt.Adafactor` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16 or float16; written.
        grads: a gradient for each param, of its shape.
        row_vars: the means of squared gradients over rows, of matrices; None for other params; written.
        col_vars: the same over columns.
        variances: the means of squared gradients, of params that are no matrices; None for matrices; written.
        state_steps: the counters of steps, tensors of one element; advanced.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        grad_scale: a tensor of one element that gradients are divided by; they are not written. Default: None.
        found_inf: a tensor of one element; if it is not 0, nothing is stepped. Default: None.
        has_complex: accepted for torch's sake; torch's own code steps complex params. Default: False.
        d: the largest root mean square of an update.
        lr: the largest learning rate, a number or a tensor of one element.
        beta2_decay: the power with which the factor of the running means nears 1.
        weight_decay: the decay of params, decoupled.
        eps1: the smallest mean of squares; None: the epsilon of the param's dtype.
        eps2: the smallest size of a step relative to the param's.
        maximize: ascend.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, row, col, step = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1), torch.zeros(1, 2), torch.tensor(0.0)
        >>> fusedopt.functional.adafactor(
        ...     [param], [torch.tensor([[2.0, -0.25]])], [row], [col], [None], [step],
        ...     d=1.0, lr=0.5, beta2_decay=-0.8, weight_decay=0.0, eps1=None, eps2=1e-3, maximize=False,
        ... )
        >>> [round(p, 4) for p in param.tolist()[0]]
        [1.2322, 5.7678]
    """
    step_lists(_ADAFACTOR, locals())


def adagrad(
    params: list[Tensor],
    grads: list[Tensor],
    state_sums: list[Tensor],
    state_steps: list[Tensor],
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_sparse_grad: bool = False,
    foreach: bool | None = None,
    differentiable: bool = False,
    has_complex: bool = False,
    *,
    lr: float | Tensor,
    weight_decay: float,
    lr_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """A step of :class:`fusedopt.Adagrad` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        state_sums: the sums of squared gradients, one for each param and of its shape; written.
        state_steps: the counters of steps, tensors of one element; advanced.
        fused: accepted for torch's sake; changes nothing. Default: None.
        grad_scale: a tensor of one element that gradients are divided by; they are not written. Default: None.
        found_inf: a tensor of one element; if it is not 0, nothing is stepped. Default: None.
        has_sparse_grad: accepted for torch's sake; gradients say it. Default: False.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        has_complex: accepted for torch's sake; params say it. Default: False.
        lr: the learning rate, a number or a tensor of one element.
        weight_decay: an L2 penalty.
        lr_decay: how the learning rate falls with the steps.
        eps: added to denominators.
        maximize: ascend.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> sum = torch.zeros(2)
        >>> fusedopt.functional.adagrad(
        ...     [param], [grad], [sum], [torch.tensor(0.0)],
        ...     lr=0.5, weight_decay=0.0, lr_decay=0.0, eps=0.0, maximize=False,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [0.5, 2.5]
    """
    step_lists(_ADAGRAD, locals())


def rmsprop(
    params: list[Tensor],
    grads: list[Tensor],
    square_avgs: list[Tensor],
    grad_avgs: list[Tensor],
    momentum_buffer_list: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
    has_complex: bool = False,
    *,
    lr: float | Tensor,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
) -> None:
    """A step of :class:`fusedopt.RMSprop` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        square_avgs: the running means of squared gradients, one for each param and of its shape; written.
        grad_avgs: the running means of gradients; written. Only with `centered`, else empty.
        momentum_buffer_list: the momentum, one for each param and of its shape; written. Only with `momentum`, else
            empty.
        state_steps: the counters of steps, tensors of one element; advanced.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        maximize: ascend. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        capturable: let CUDA graphs capture the step. Default: False.
        has_complex: accepted for torch's sake; params say it. Default: False.
        lr: the learning rate, a number or a tensor of one element.
        alpha: the factor of the running means, in [0, 1].
        eps: added to denominators.
        weight_decay: an L2 penalty.
        momentum: the factor of the momentum.
        centered: divide by the variance of gradients instead of their mean square.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> square_avg = torch.zeros(2)
        >>> fusedopt.functional.rmsprop(
        ...     [param], [grad], [square_avg], [], [], [torch.tensor(0.0)],
        ...     lr=0.5, alpha=0.75, eps=0.0, weight_decay=0.0, momentum=0.0, centered=False,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [0.0, 3.0]
    """
    step_lists(_RMSPROP, locals())
