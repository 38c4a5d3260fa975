"""Ten steps of an optimizer of Keras, optax, MLX or Paddle, over one matrix."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

import fusedopt

# Read when they are imported.
os.environ.update({"KERAS_BACKEND": "torch", "JAX_PLATFORMS": "cpu"})

LR = 0.01


def matrices(count: int) -> list[Tensor]:
    """The first is where both begin, the others are gradients."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(24, 16, generator=generator) for _ in range(count)]


def _keras(name: str, given: dict[str, Any], start: Any, grads: Sequence[Any]) -> Any:
    import keras

    variable = keras.Variable(start)
    optimizer = getattr(keras.optimizers, name)(learning_rate=LR, **given)
    for grad in grads:
        optimizer.apply([keras.ops.convert_to_tensor(grad)], [variable])
    return keras.ops.convert_to_numpy(variable)


def _optax(name: str, given: dict[str, Any], start: Any, grads: Sequence[Any]) -> Any:
    import jax.numpy as jnp
    import optax

    param = jnp.asarray(start)
    rule = getattr(optax, name)(LR, **given)
    state = rule.init(param)
    for grad in grads:
        updates, state = rule.update(jnp.asarray(grad), state, param)
        param = optax.apply_updates(param, updates)
    return np.array(param)


def _mlx(name: str, given: dict[str, Any], start: Any, grads: Sequence[Any]) -> Any:
    import mlx.core as mx
    import mlx.optimizers

    params = {"w": mx.array(start)}
    optimizer = getattr(mlx.optimizers, name)(learning_rate=LR, **given)
    for grad in grads:
        params = optimizer.apply_gradients({"w": mx.array(grad)}, params)
        mx.eval(params)
    return np.array(params["w"])


def _paddle(name: str, given: dict[str, Any], start: Any, grads: Sequence[Any]) -> Any:
    import paddle

    param = paddle.create_parameter(list(start.shape), "float32")
    param.set_value(start)
    optimizer = getattr(paddle.optimizer, name)(learning_rate=LR, parameters=[param], **given)
    for grad in grads:
        (param * paddle.to_tensor(grad)).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
    return param.numpy()


DRIVERS: dict[str, Callable[[str, dict[str, Any], Any, Sequence[Any]], Any]] = {
    "keras": _keras,
    "optax": _optax,
    "mlx": _mlx,
    "paddle": _paddle,
}


def version_of(framework: str) -> str:
    return version({"paddle": "paddlepaddle"}.get(framework, framework))


def theirs(call: str, given: dict[str, Any], start: Tensor, grads: Sequence[Tensor]) -> Tensor:
    framework, _, name = call.partition(".")
    reached = DRIVERS[framework](name, given, start.numpy().copy(), [grad.numpy().copy() for grad in grads])
    return torch.from_numpy(np.array(reached))


def ours(name: str, called: dict[str, Any], start: Tensor, grads: Sequence[Tensor]) -> Tensor:
    param = Parameter(start.clone())
    optimizer = getattr(fusedopt, name)([param], **{"lr": LR, **called})
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach()


def apart(call: str, given: dict[str, Any], name: str, called: dict[str, Any]) -> float:
    """The largest difference after ten steps, as a part of the largest movement."""
    start, *grads = matrices(11)
    wanted = theirs(call, given, start, grads)
    moved = (wanted - start).abs().max()
    return ((ours(name, called, start, grads) - wanted).abs().max() / moved).item()
