"""The update rules, slow and obvious: one param, one gradient, the state under torch's keys, the group's settings."""

from __future__ import annotations

import math

import torch
from formulas_schedule_free import adamw_schedule_free, radam_schedule_free, sgd_schedule_free
from terms import Hypers, Rule, State, decayed, moving, penalised
from torch import Tensor


def sgd(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    p, g = decayed(p, g, h)
    momentum = h["momentum"]
    if momentum != 0:
        previous = s.get("momentum_buffer")
        # The first buffer is the gradient itself: neither momentum nor dampening applies to it.
        s["momentum_buffer"] = g.clone() if previous is None else momentum * previous + (1 - h["dampening"]) * g
        g = g + momentum * s["momentum_buffer"] if h["nesterov"] else s["momentum_buffer"]
    return p - float(h["lr"]) * g


def adam(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = (float(beta) for beta in h["betas"])
    lr = float(h["lr"])
    if h.get("decoupled_weight_decay"):
        p = p * (1 - lr * h["weight_decay"])
    else:
        g = penalised(p, g, h["weight_decay"])
    zero = torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = s.get("exp_avg", zero).lerp(g, 1 - beta1)
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    if h["amsgrad"]:
        v = s["max_exp_avg_sq"] = torch.maximum(s.get("max_exp_avg_sq", zero), v)
    moves, growth = moving(m, g, h)
    m, lr = m * moves, lr * growth
    if h.get("bias_correction", True):
        m, v = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * m / (v.sqrt() + h["eps"])


def adamw(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    # Before torch 2.7 its groups say nothing of that.
    return adam(p, g, s, {"decoupled_weight_decay": True, **h})


def rmsprop(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    alpha, lr = h["alpha"], float(h["lr"])
    p, g = decayed(p, g, h)
    zero = torch.zeros_like(p)
    s["step"] = float(s.get("step", 0)) + 1
    start = torch.full_like(p, h.get("initial_accumulator_value", 0.0))
    v = s["square_avg"] = alpha * s.get("square_avg", start) + (1 - alpha) * g * g
    if h["centered"]:
        mean = s["grad_avg"] = alpha * s.get("grad_avg", zero) + (1 - alpha) * g
        # A variance: only rounding can bring it below zero.
        v = (v - mean * mean).clamp_min(0)
    change = g / ((v + h["eps"]).sqrt() if h.get("eps_in_sqrt") else v.sqrt() + h["eps"])
    if h["momentum"] > 0:
        change = lr * change if h.get("lr_in_momentum") else change
        change = s["momentum_buffer"] = h["momentum"] * s.get("momentum_buffer", zero) + change
        if h.get("lr_in_momentum"):
            return p - change
    return p - lr * change


def adagrad(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    g = penalised(p, g, h["weight_decay"])
    step = s["step"] = float(s.get("step", 0)) + 1
    s["sum"] = s.get("sum", torch.full_like(p, h["initial_accumulator_value"])) + g * g
    return p - float(h["lr"]) / (1 + (step - 1) * h["lr_decay"]) * g / (s["sum"].sqrt() + h["eps"])


def adadelta(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    g = penalised(p, g, h["weight_decay"])
    rho, eps, zero = h["rho"], h["eps"], torch.zeros_like(p)
    s["step"] = float(s.get("step", 0)) + 1
    v = s["square_avg"] = rho * s.get("square_avg", zero) + (1 - rho) * g * g
    change = (s.get("acc_delta", zero) + eps).sqrt() / (v + eps).sqrt() * g
    s["acc_delta"] = rho * s.get("acc_delta", zero) + (1 - rho) * change * change
    return p - float(h["lr"]) * change


def adamax(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    g = penalised(p, g, h["weight_decay"])
    zero = torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = beta1 * s.get("exp_avg", zero) + (1 - beta1) * g
    u = s["exp_inf"] = torch.maximum(beta2 * s.get("exp_inf", zero), g.abs() + h["eps"])
    return p - float(h["lr"]) / (1 - beta1**step) * m / u


def nadam(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    p, g = decayed(p, g, h)
    step = s["step"] = float(s.get("step", 0)) + 1
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (t * h["momentum_decay"])) for t in (step, step + 1))
    product = s["mu_product"] = float(s.get("mu_product", 1)) * mu
    m = s["exp_avg"] = beta1 * s.get("exp_avg", zero) + (1 - beta1) * g
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    root = (v / (1 - beta2**step)).sqrt() + h["eps"]
    return p - lr * (1 - mu) / (1 - product) * g / root - lr * mu_next / (1 - product * mu_next) * m / root


def radam(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    p, g = decayed(p, g, h)
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = beta1 * s.get("exp_avg", zero) + (1 - beta1) * g
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**step)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length <= 5:
        return p - lr * m_hat
    rectified = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
    return p - lr * rectified * (1 - beta2**step) ** 0.5 * m_hat / (v.sqrt() + h["eps"])


def asgd(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    lr, lambd = float(h["lr"]), h["lambd"]
    g = penalised(p, g, h["weight_decay"])
    step = s["step"] = float(s.get("step", 0)) + 1
    # A step uses what the last one has left.
    eta, mu = float(s.get("eta", lr)), float(s.get("mu", 1))
    s["eta"] = lr / (1 + lambd * lr * step) ** h["alpha"]
    s["mu"] = 1 / max(1, step - h["t0"])
    p = (1 - lambd * eta) * p - eta * g
    # The first average is the param itself: no average was taken before.
    s["ax"] = p.clone() if mu == 1 else s["ax"] + mu * (p - s["ax"])
    return p


def rprop(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    (smaller, larger), (smallest, largest) = h["etas"], h["step_sizes"]
    s["step"] = float(s.get("step", 0)) + 1
    agreement = g * s.get("prev", torch.zeros_like(p))
    size = s.get("step_size", torch.full_like(p, float(h["lr"])))
    size = torch.where(agreement > 0, larger * size, torch.where(agreement < 0, smaller * size, size))
    s["prev"] = g = torch.where(agreement < 0, 0, g)
    s["step_size"] = size.clamp(smallest, largest)
    return p - g.sign() * s["step_size"]


def lion(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr, m = float(h["lr"]), s.get("exp_avg", torch.zeros_like(p))
    s["exp_avg"] = beta2 * m + (1 - beta2) * g
    along = (beta1 * m + (1 - beta1) * g).sign()
    moves, growth = moving(along, g, h)
    return (1 - lr * h["weight_decay"]) * p - lr * growth * (along * moves)


def adan(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2, beta3 = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    difference = g + s.get("neg_pre_grad", -g)
    m = s["exp_avg"] = beta1 * s.get("exp_avg", zero) + (1 - beta1) * g
    n = s["exp_avg_sq"] = beta3 * s.get("exp_avg_sq", zero) + (1 - beta3) * (g + beta2 * difference) ** 2
    v = s["exp_avg_diff"] = beta2 * s.get("exp_avg_diff", zero) + (1 - beta2) * difference
    s["neg_pre_grad"] = -g
    root = (n / (1 - beta3**step)).sqrt() + h["eps"]
    moves, growth = moving(m, g, h)
    along = lr * growth / (1 - beta1**step) * (m * moves)
    change = (along + lr * beta2 / (1 - beta2**step) * v) / root
    decay = lr * h["weight_decay"]
    return (1 - decay) * p - change if h["no_prox"] else (p - change) / (1 + decay)


def ademamix(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2, beta3 = h["betas"]
    lr, alpha, zero = float(h["lr"]), h["alpha"], torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    if h["t_alpha"]:
        alpha = min(step * alpha / h["t_alpha"], alpha)
    if h["t_beta3"] and step < h["t_beta3"]:
        log1, log3, part = math.log(beta1), math.log(beta3), step / h["t_beta3"]
        beta3 = min(math.exp(log1 * log3 / ((1 - part) * log3 + part * log1)), beta3)
    m = s["exp_avg"] = s.get("exp_avg", zero).lerp(g, 1 - beta1)
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    slow = s["exp_avg_slow"] = s.get("exp_avg_slow", zero).lerp(g, 1 - beta3)
    root = (v / (1 - beta2**step)).sqrt() + h["eps"]
    return (1 - lr * h["weight_decay"]) * p - (lr / (1 - beta1**step) * m + lr * alpha * slow) / root


def adopt(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    decays, g = decayed(p, g, {**h, "decoupled_weight_decay": h["decouple"]})
    m, step = s.get("exp_avg", torch.zeros_like(p)), float(s.get("step", 0)) + 1
    s["step"], s["exp_avg"] = step, m
    if step == 1:
        s["exp_avg_sq"] = g * g
        return p
    v = s["exp_avg_sq"]
    normalised = g / v.sqrt().clamp_min(h["eps"])
    if h["clip_exp"] is not None:
        bound = (step - 1) ** h["clip_exp"]
        normalised = normalised.clamp(-bound, bound)
    m = s["exp_avg"] = m.lerp(normalised, 1 - beta1)
    s["exp_avg_sq"] = beta2 * v + (1 - beta2) * g * g
    return decays - float(h["lr"]) * m


def adam_atan2(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = s.get("exp_avg", zero).lerp(g, 1 - beta1)
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    angle = torch.atan2(m / (1 - beta1**step), h["b"] * (v / (1 - beta2**step)).sqrt())
    return (1 - lr * h["weight_decay"]) * p - lr * h["a"] * angle


def nadamw(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = s.get("exp_avg", zero).lerp(g, 1 - beta1)
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    size = lr / (1 - beta1**step)
    return (1 - lr * h["weight_decay"]) * p - size * m.lerp(g, 1 - beta1) / ((v / (1 - beta2**step)).sqrt() + h["eps"])


def laprop(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    s["step"] = float(s.get("step", 0)) + 1
    rates = s["exp_avg_lr_1"] = beta1 * float(s.get("exp_avg_lr_1", 0)) + (1 - beta1) * lr
    ones = s["exp_avg_lr_2"] = beta2 * float(s.get("exp_avg_lr_2", 0)) + (1 - beta2)
    s.setdefault("exp_avg", zero)
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    normalised = g / ((v / ones).sqrt() + h["eps"])
    m = s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * lr * normalised
    return (1 - lr * h["weight_decay"]) * (p - (lr / rates if rates else 0.0) * m)


def adabelief(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    if h["decoupled_decay"]:
        p = p * (1 - (1 if h["fixed_decay"] else lr) * h["weight_decay"])
    else:
        g = penalised(p, g, h["weight_decay"])
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = s.get("exp_avg", zero).lerp(g, 1 - beta1)
    v = s["exp_avg_var"] = beta2 * s.get("exp_avg_var", zero) + (1 - beta2) * (g - m) ** 2 + h["eps"]
    if h["amsgrad"]:
        s["max_exp_avg_var"] = torch.maximum(s.get("max_exp_avg_var", zero), v)
    m_hat, correction = m / (1 - beta1**step), 1 - beta2**step
    if not h["rectify"]:
        return p - lr * m_hat / ((s.get("max_exp_avg_var", v) / correction).sqrt() + h["eps"])
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction
    if length < 5:
        return p - lr * m_hat if h["degenerated_to_sgd"] else p
    rectified = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
    return p - lr * rectified * correction**0.5 * m_hat / (v.sqrt() + h["eps"])


def stable_adamw(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    zero = torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = s.get("exp_avg", zero).lerp(g, 1 - beta1)
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    v_hat = v / (1 - beta2**step)
    rms = (g * g / v_hat.clamp_min(h["eps"] ** 2)).mean().sqrt()
    lr = float(h["lr"]) / max(1.0, float(rms))
    return (1 - lr * h["weight_decay"]) * p - lr / (1 - beta1**step) * m / (v_hat.sqrt() + h["eps"])


def _trust(numerator: Tensor, denominator: Tensor, norms: tuple[Tensor, Tensor]) -> Tensor:
    """Their ratio, but 1 where either norm is 0."""
    positive = (norms[0] > 0) & (norms[1] > 0)
    return torch.where(positive, numerator / denominator, torch.ones_like(denominator))


def lamb(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    decay, zero = h["weight_decay"], torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = beta1 * s.get("exp_avg", zero) + (1 - beta1 if h["grad_averaging"] else 1) * g
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    if h["bias_correction"]:
        m, v = m / (1 - beta1**step), v / (1 - beta2**step)
    if h.get("decoupled_decay"):
        p = p * (1 - float(h["lr"]) * decay)
    update = m / (v.sqrt() + h["eps"])
    moves, growth = moving(update, g, h)
    update = penalised(p, growth * moves * update, 0 if h.get("decoupled_decay") else decay)
    if decay != 0 or h["always_adapt"]:
        largest = math.inf if h.get("clamp_value") is None else h["clamp_value"]
        norms = torch.linalg.vector_norm(p).clamp(max=largest), torch.linalg.vector_norm(update)
        trust = _trust(*norms, norms)
        update = (trust.clamp(max=1) if h["trust_clip"] else trust) * update
    return p - float(h["lr"]) * update


def mars(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    step = s["step"] = float(s.get("step", 0)) + 1
    along = g + h["gamma"] * beta1 / (1 - beta1) * (g - s["last_grad"]) if step > 1 else g
    along = along / torch.linalg.vector_norm(along).clamp_min(1)
    m = s["exp_avg"] = beta1 * s.get("exp_avg", zero) + (1 - beta1) * along
    v = s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", zero) + (1 - beta2) * along * along
    s["last_grad"] = g.clone()
    change = lr / (1 - beta1**step) * m / ((v / (1 - beta2**step)).sqrt() + h["eps"])
    return (1 - lr * h["weight_decay"]) * p - change


def novograd(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, beta2 = h["betas"]
    lr = float(h["lr"])
    s["step"] = float(s.get("step", 0)) + 1
    before, norm_sq = float(s.get("exp_avg_norm_sq", 0)), float((g * g).sum())
    v = s["exp_avg_norm_sq"] = beta2 * before + (1 - beta2) * norm_sq if before else norm_sq
    along = g / (math.sqrt(v) + h["eps"])
    if h["decoupled_decay"]:
        p = p * (1 - lr * h["weight_decay"])
    else:
        along = penalised(p, along, h["weight_decay"])
    weight = 1 - beta1 if h["grad_averaging"] else 1
    m = s["exp_avg"] = beta1 * s.get("exp_avg", torch.zeros_like(p)) + weight * along
    return p - lr * m


def lars(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    lr, decay = float(h["lr"]), h["weight_decay"]
    if decay != 0 or h["always_adapt"]:
        norms = torch.linalg.vector_norm(p), torch.linalg.vector_norm(g)
        trust = _trust(h["trust_coeff"] * norms[0], norms[1] + decay * norms[0] + h["eps"], norms)
        g = ((trust / lr).clamp(max=1) if h["trust_clip"] else trust) * penalised(p, g, decay)
    return sgd(p, g, s, {**h, "weight_decay": 0})


def sophia(p: Tensor, g: Tensor, s: State, h: Hypers) -> Tensor:
    beta1, _ = h["betas"]
    lr, zero = float(h["lr"]), torch.zeros_like(p)
    s["step"] = float(s.get("step", 0)) + 1
    m = s["exp_avg"] = beta1 * s.get("exp_avg", zero) + (1 - beta1) * g
    # Steps alone leave it as it is.
    diagonal = s["hessian"] = s.get("hessian", zero)
    ratio = (m.abs() / (h["rho"] * h.get("bs", 5120) * diagonal + 1e-15)).clamp(max=1)
    return (1 - lr * h["weight_decay"]) * p - lr * m.sign() * ratio


RULES: dict[str, Rule] = {
    "SGD": sgd, "Adam": adam, "AdamW": adamw, "RMSprop": rmsprop, "Adagrad": adagrad, "Adadelta": adadelta,
    "Adamax": adamax, "NAdam": nadam, "RAdam": radam, "ASGD": asgd, "Rprop": rprop, "Lion": lion, "Adan": adan,
    "AdEMAMix": ademamix, "ADOPT": adopt, "AdamAtan2": adam_atan2, "LAMB": lamb, "LARS": lars,
    "NAdamW": nadamw, "LaProp": laprop, "AdaBelief": adabelief, "StableAdamW": stable_adamw, "MARS": mars,
    "NovoGrad": novograd, "SophiaG": sophia,
    "AdamWScheduleFree": adamw_schedule_free, "RAdamScheduleFree": radam_schedule_free,
    "SGDScheduleFree": sgd_schedule_free,
}  # fmt: skip
