"""Steps over lists of what follows signs, averages params, or sees rows alone."""

from torch import Tensor

from .._core.lists import Lists, step_lists
from ..optimizers.asgd import ASGD
from ..optimizers.rprop import Rprop
from ..optimizers.sgd import SGD
from ..optimizers.sparse_adam import SparseAdam

_ASGD = Lists(ASGD, "asgd", "asgd", {"axs": "ax", "mus": "mu", "etas": "eta", "state_steps": "step"})
_RPROP = Lists(
    Rprop, "rprop", "rprop", {"prevs": "prev", "step_sizes": "step_size", "state_steps": "step"}, more={"lr": 0.0}
)
_SGD = Lists(
    SGD,
    "sgd",
    "sgd",
    {"momentum_buffer_list": "momentum_buffer"},
    only_with={"momentum_buffer_list": "momentum"},
    may_lack=True,
)
_SPARSE_ADAM = Lists(
    SparseAdam,
    "_functional",
    "sparse_adam",
    {"exp_avgs": "exp_avg", "exp_avg_sqs": "exp_avg_sq", "state_steps": "step"},
    counted=True,
)


def asgd(
    params: list[Tensor],
    grads: list[Tensor],
    axs: list[Tensor],
    mus: list[Tensor],
    etas: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
    has_complex: bool = False,
    *,
    lambd: float,
    lr: float | Tensor,
    t0: float,
    alpha: float,
    weight_decay: float,
) -> None:
    """A step of :class:`fusedopt.ASGD` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        axs: the averages of params, one for each and of its shape; written.
        mus: the averages' weights, tensors of one element; written.
        etas: the decayed learning rates, tensors of one element; written.
        state_steps: the counters of steps, tensors of one element; advanced.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        maximize: ascend. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        capturable: let CUDA graphs capture the step. Default: False.
        has_complex: accepted for torch's sake; params say it. Default: False.
        lambd: the decay of params.
        lr: the learning rate, a number or a tensor of one element.
        t0: the step at which averaging begins.
        alpha: the power with which the learning rate falls.
        weight_decay: an L2 penalty.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> ax = torch.zeros(2)
        >>> fusedopt.functional.asgd(
        ...     [param], [grad], [ax], [torch.tensor(1.0)], [torch.tensor(0.5)], [torch.tensor(0.0)],
        ...     lambd=0.0, lr=0.5, t0=1e6, alpha=0.75, weight_decay=0.0,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [-1.0, 4.0]
    """
    step_lists(_ASGD, locals())


def rprop(
    params: list[Tensor],
    grads: list[Tensor],
    prevs: list[Tensor],
    step_sizes: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    maximize: bool = False,
    differentiable: bool = False,
    has_complex: bool = False,
    *,
    step_size_min: float,
    step_size_max: float,
    etaminus: float,
    etaplus: float,
) -> None:
    """A step of :class:`fusedopt.Rprop` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        grads: a gradient for each param, of its shape.
        prevs: the gradients before, one for each param and of its shape; written.
        step_sizes: the steps of elements, one tensor for each param and of its shape; written.
        state_steps: the counters of steps, tensors of one element; advanced.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        capturable: let CUDA graphs capture the step. Default: False.
        maximize: ascend. Default: False.
        differentiable: let autograd record the step, through torch's own code. Default: False.
        has_complex: accepted for torch's sake; params say it. Default: False.
        step_size_min: the smallest step of an element.
        step_size_max: the largest.
        etaminus: by what a step shrinks after a change of sign.
        etaplus: by what it grows otherwise.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> prev = torch.zeros(2)
        >>> fusedopt.functional.rprop(
        ...     [param], [grad], [prev], [torch.full((2,), 0.5)], [torch.tensor(0.0)],
        ...     step_size_min=0.0, step_size_max=50.0, etaminus=0.5, etaplus=1.5,
        ... )
        >>> [round(p, 4) for p in param.tolist()]
        [0.5, 2.5]
    """
    step_lists(_RPROP, locals())


def sgd(
    params: list[Tensor],
    d_p_list: list[Tensor],
    momentum_buffer_list: list[Tensor | None],
    has_sparse_grad: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    weight_decay: float,
    momentum: float,
    lr: float | Tensor,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """A step of :class:`fusedopt.SGD` over lists; its formulas are those of the class.

    Args:
        params: the params, float32, float64, bfloat16, float16 or complex; written.
        d_p_list: a gradient for each param, of its shape.
        momentum_buffer_list: the momentum of each param, None before its first step; written, and entered in the list
            where it is None. Only with `momentum`.
        has_sparse_grad: accepted for torch's sake; gradients say it. Default: False.
        foreach: accepted for torch's sake; where torch's own code steps, it chooses that. Default: None.
        fused: accepted for torch's sake; changes nothing. Default: None.
        grad_scale: a tensor of one element that gradients are divided by; they are not written. Default: None.
        found_inf: a tensor of one element; if it is not 0, nothing is stepped. Default: None.
        weight_decay: an L2 penalty.
        momentum: the factor of the momentum.
        lr: the learning rate, a number or a tensor of one element.
        dampening: what of the gradient does not enter the momentum.
        nesterov: step along the momentum as the next step will find it.
        maximize: ascend.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, grad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
        >>> momentum = [None]
        >>> fusedopt.functional.sgd(
        ...     [param], [grad], momentum,
        ...     weight_decay=0.0, momentum=0.5, lr=0.5, dampening=0.0, nesterov=False, maximize=False,
        ... )
        >>> param.tolist(), momentum[0].tolist()
        ([-1.0, 4.0], [4.0, -4.0])
    """
    step_lists(_SGD, locals())


def sparse_adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[int],
    *,
    eps: float,
    beta1: float,
    beta2: float,
    lr: float,
    maximize: bool,
) -> None:
    """A step of :class:`fusedopt.SparseAdam` over lists; its formulas are those of the class.

    Args:
        params: the params, contiguous; written where gradients have rows.
        grads: a sparse gradient for each param, of its shape.
        exp_avgs: the running means of gradients, one for each param and of its shape; written.
        exp_avg_sqs: the running means of squared gradients, one for each param and of its shape; written.
        state_steps: how many steps each param has taken, this one included; numbers.
        eps: added to denominators.
        beta1: the factor of the first running mean, in [0, 1).
        beta2: the factor of the second, in [0, 1).
        lr: the learning rate, a number or a tensor of one element.
        maximize: ascend.

    Raises:
        ValueError: a list has not one entry for each param, or a number is NaN.
        TypeError: an entry of a list is no tensor, or a number is none.
        RuntimeError: a gradient or a state does not fit its param. Nothing has been written then.

    Example:
        >>> param, exp_avg, exp_avg_sq = torch.ones(3, 1), torch.zeros(3, 1), torch.zeros(3, 1)
        >>> grad = torch.sparse_coo_tensor([[1]], [[4.0]], (3, 1))
        >>> fusedopt.functional.sparse_adam(
        ...     [param], [grad], [exp_avg], [exp_avg_sq], [1], eps=0.0, beta1=0.5, beta2=0.75, lr=0.5, maximize=False
        ... )
        >>> param.flatten().tolist()
        [1.0, 0.5, 1.0]
    """
    step_lists(_SPARSE_ADAM, locals())
