"""Steps of Adam and its kin over lists."""

from torch import Tensor

from .._core.lists import Lists, step_lists
from ..optimizers.adam import Adam
from ..optimizers.adamax import Adamax
from ..optimizers.adamw import AdamW
from ..optimizers.nadam import NAdam
from ..optimizers.radam import RAdam

_ADAM = Lists(
    Adam,
    "adam",
    "adam",
    {"exp_avgs": "exp_avg", "exp_avg_sqs": "exp_avg_sq", "max_exp_avg_sqs": "max_exp_avg_sq", "state_steps": "step"},
    only_with={"max_exp_avg_sqs": "amsgrad"},
)
_ADAMAX = Lists(Adamax, "adamax", "adamax", {"exp_avgs": "exp_avg", "exp_infs": "exp_inf", "state_steps": "step"})
_ADAMW = Lists(
    AdamW,
    "adamw",
    "adamw",
    {"exp_avgs": "exp_avg", "exp_avg_sqs": "exp_avg_sq", "max_exp_avg_sqs": "max_exp_avg_sq", "state_steps": "step"},
    only_with={"max_exp_avg_sqs": "amsgrad"},
)
_NADAM = Lists(
    NAdam,
    "nadam",
    "nadam",
    {"exp_avgs": "exp_avg", "exp_avg_sqs": "exp_avg_sq", "mu_products": "mu_product", "state_steps": "step"},
)
_RADAM = Lists(RAdam, "radam", "radam", {"exp_avgs": "exp_avg", "exp_avg_sqs": "exp_avg_sq", "state_steps": "step"})


def adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,
    decoupled_weight_decay: bool = False,
    *,
    amsgrad: bool,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """A step of :class:`fusedopt.Adam` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        exp_avgs: the running means of gradients, one for each param and of its shape; written.
        exp_avg_sqs: the running means of squared gradients, one for each param and of its shape; written.
        max_exp_avg_sqs: the largest `exp_avg_sqs` so far; written. Only with `amsgrad`, else empty.
        state_steps: the counters of steps, tensors of one element; advanced.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        capturable: let CUDA graphs capture the step. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        fused: accepted for torch's sake; changes nothing. Default: None.
        grad_scale: a tensor of one element that gradients are divided by; they are not written. Default: None.
        found_inf: a tensor of one element; if it is not 0, nothing is stepped. Default: None.
        has_complex: accepted for torch's sake; params say it. Default: False.
        decoupled_weight_decay: decay params and not gradients. Default: False.
        amsgrad: divide by the largest mean of squares so far.
        beta1: the factor of the first running mean, in [0, 1).
        beta2: the factor of the second, in [0, 1).
        lr: the learning rate, a number or a tensor of one element.
        weight_decay: an L2 penalty.
        eps: added to denominators.
        maximize: ascend.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> exp_avg, exp_avg_sq = torch.zeros(2), torch.zeros(2)
        >>> fusedopt.functional.adam(
        ...     [param], [grad], [exp_avg], [exp_avg_sq], [], [torch.tensor(0.0)],
        ...     amsgrad=False, beta1=0.5, beta2=0.75, lr=0.5, weight_decay=0.0, eps=0.0, maximize=False,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [0.5, 2.5]
    """
    step_lists(_ADAM, locals())


def adamax(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_infs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
    has_complex: bool = False,
    *,
    eps: float,
    beta1: float,
    beta2: float,
    lr: float | Tensor,
    weight_decay: float,
) -> None:
    """A step of :class:`fusedopt.Adamax` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        exp_avgs: the running means of gradients, one for each param and of its shape; written.
        exp_infs: the decayed maxima of gradients, one for each param and of its shape; written.
        state_steps: the counters of steps, tensors of one element; advanced.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        maximize: ascend. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        capturable: let CUDA graphs capture the step. Default: False.
        has_complex: accepted for torch's sake; params say it. Default: False.
        eps: added to denominators.
        beta1: the factor of the first running mean, in [0, 1).
        beta2: the factor of the second, in [0, 1).
        lr: the learning rate, a number or a tensor of one element.
        weight_decay: an L2 penalty.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> exp_avg, exp_inf = torch.zeros(2), torch.zeros(2)
        >>> fusedopt.functional.adamax(
        ...     [param], [grad], [exp_avg], [exp_inf], [torch.tensor(0.0)],
        ...     eps=0.0, beta1=0.5, beta2=0.75, lr=0.5, weight_decay=0.0,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [0.5, 2.5]
    """
    step_lists(_ADAMAX, locals())


def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,
    *,
    amsgrad: bool,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """A step of :class:`fusedopt.AdamW` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        exp_avgs: the running means of gradients, one for each param and of its shape; written.
        exp_avg_sqs: the running means of squared gradients, one for each param and of its shape; written.
        max_exp_avg_sqs: the largest `exp_avg_sqs` so far; written. Only with `amsgrad`, else empty.
        state_steps: the counters of steps, tensors of one element; advanced.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        capturable: let CUDA graphs capture the step. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        fused: accepted for torch's sake; changes nothing. Default: None.
        grad_scale: a tensor of one element that gradients are divided by; they are not written. Default: None.
        found_inf: a tensor of one element; if it is not 0, nothing is stepped. Default: None.
        has_complex: accepted for torch's sake; params say it. Default: False.
        amsgrad: divide by the largest mean of squares so far.
        beta1: the factor of the first running mean, in [0, 1).
        beta2: the factor of the second, in [0, 1).
        lr: the learning rate, a number or a tensor of one element.
        weight_decay: the decay of params, decoupled.
        eps: added to denominators.
        maximize: ascend.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> exp_avg, exp_avg_sq = torch.zeros(2), torch.zeros(2)
        >>> fusedopt.functional.adamw(
        ...     [param], [grad], [exp_avg], [exp_avg_sq], [], [torch.tensor(0.0)],
        ...     amsgrad=False, beta1=0.5, beta2=0.75, lr=0.5, weight_decay=0.5, eps=0.0, maximize=False,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [0.25, 2.0]
    """
    step_lists(_ADAMW, locals())


def nadam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    mu_products: list[Tensor],
    state_steps: list[Tensor],
    decoupled_weight_decay: bool = False,
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    has_complex: bool = False,
    maximize: bool = False,
    *,
    beta1: float,
    beta2: float,
    lr: float | Tensor,
    weight_decay: float,
    momentum_decay: float,
    eps: float,
) -> None:
    """A step of :class:`fusedopt.NAdam` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        exp_avgs: the running means of gradients, one for each param and of its shape; written.
        exp_avg_sqs: the running means of squared gradients, one for each param and of its shape; written.
        mu_products: the products of the momentum's factors, tensors of one element; written.
        state_steps: the counters of steps, tensors of one element; advanced.
        decoupled_weight_decay: decay params and not gradients. Default: False.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        capturable: let CUDA graphs capture the step. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        has_complex: accepted for torch's sake; params say it. Default: False.
        maximize: ascend. Default: False.
        beta1: the factor of the first running mean, in [0, 1).
        beta2: the factor of the second, in [0, 1).
        lr: the learning rate, a number or a tensor of one element.
        weight_decay: an L2 penalty.
        momentum_decay: the decay of the momentum's factor.
        eps: added to denominators.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> exp_avg, exp_avg_sq = torch.zeros(2), torch.zeros(2)
        >>> fusedopt.functional.nadam(
        ...     [param], [grad], [exp_avg], [exp_avg_sq], [torch.tensor(1.0)], [torch.tensor(0.0)],
        ...     beta1=0.5, beta2=0.75, lr=0.5, weight_decay=0.0, momentum_decay=0.0, eps=0.0,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [0.4333, 2.5667]
    """
    step_lists(_NADAM, locals())


def radam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    decoupled_weight_decay: bool = False,
    foreach: bool | None = None,
    differentiable: bool = False,
    capturable: bool = False,
    has_complex: bool = False,
    maximize: bool = False,
    *,
    beta1: float,
    beta2: float,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    """A step of :class:`fusedopt.RAdam` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        exp_avgs: the running means of gradients, one for each param and of its shape; written.
        exp_avg_sqs: the running means of squared gradients, one for each param and of its shape; written.
        state_steps: the counters of steps, tensors of one element; advanced.
        decoupled_weight_decay: decay params and not gradients. Default: False.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        capturable: let CUDA graphs capture the step. Default: False.
        has_complex: accepted for torch's sake; params say it. Default: False.
        maximize: ascend. Default: False.
        beta1: the factor of the first running mean, in [0, 1).
        beta2: the factor of the second, in [0, 1).
        lr: the learning rate, a number or a tensor of one element.
        weight_decay: an L2 penalty.
        eps: added to denominators.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> exp_avg, exp_avg_sq = torch.zeros(2), torch.zeros(2)
        >>> fusedopt.functional.radam(
        ...     [param], [grad], [exp_avg], [exp_avg_sq], [torch.tensor(0.0)],
        ...     beta1=0.5, beta2=0.75, lr=0.5, weight_decay=0.0, eps=0.0,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [-1.0, 4.0]
    """
    step_lists(_RADAM, locals())
