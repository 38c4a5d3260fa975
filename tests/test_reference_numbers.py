"""Ten steps of the reference implementations, as they ran once in float64; the formulas here were read, not copied."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from references import twin
from torch.nn import Parameter

import fusedopt

START = [1.0, -0.5, 0.25, 0.0, 2.0]
COMMON = {"lr": 0.01, "weight_decay": 0.1}
# The class, its arguments, and START after ten gradients of sin(3 t + i) 10^(i - 2), under torch 2.13.0.
RECORDED: dict[str, tuple[str, dict[str, Any], list[float]]] = {
    # bitsandbytes 0.50.2, its _ReferenceAdEMAMix
    "ademamix": (
        "AdEMAMix",
        {"betas": (0.9, 0.99, 0.999), "t_alpha": 8, "t_beta3": 20},
        [0.9823623768379116, -0.518825753347876, 0.22932394639378587, -0.009059775454856903, 2.0050620505229335],
    ),
    # torch-adopt 0.1.0, by the authors
    "adopt": (
        "ADOPT",
        {"betas": (0.9, 0.99)},
        [0.9654158871776918, -0.472108263059233, 0.25239930089731333, 0.003278388482107044, 1.9971257597592589],
    ),
    "adopt-decouple": (
        "ADOPT",
        {"betas": (0.9, 0.99), "decouple": True},
        [0.9877714867315646, -0.4926479272675844, 0.2508421112687802, 0.0032644293943093886, 1.9793130474604432],
    ),
    # adam-atan2-pytorch 0.4.1
    "adam_atan2": (
        "AdamAtan2",
        {},
        [0.9822167347108861, -0.5155717138464331, 0.2315426977538959, -0.007948565283552674, 2.0016554407673204],
    ),
    # schedulefree 1.4.1
    "adamw_schedule_free": (
        "AdamWScheduleFree",
        {"betas": (0.9, 0.99), "warmup_steps": 4},
        [0.9901053333876626, -0.49807729411978896, 0.24925223675940172, 0.0016540059724226995, 1.9903987670991354],
    ),
    "adamw_schedule_free-weights": (
        "AdamWScheduleFree",
        {"betas": (0.9, 0.99), "r": 0.5, "weight_lr_power": 1.0},
        [0.9856352192327035, -0.5024389100030351, 0.2439160710032175, -0.003006611995566357, 1.9927480412278749],
    ),
    "radam_schedule_free": (
        "RAdamScheduleFree",
        {"betas": (0.9, 0.99)},
        [0.9995472378017712, -0.5000793106462906, 0.24981832398693882, -2.3282721234856133e-06, 1.9994505355738548],
    ),
    "radam_schedule_free-loud": (
        "RAdamScheduleFree",
        {"betas": (0.9, 0.99), "silent_sgd_phase": False},
        [0.9963272194228462, -0.49863578141860265, 0.24785024924426996, 0.01667112254960686, 2.28968011996565],
    ),
    "sgd_schedule_free": (
        "SGDScheduleFree",
        {"warmup_steps": 4},
        [0.9946297849080984, -0.4973714945424454, 0.24924279282851755, 0.011388411702592855, 2.054094507066956],
    ),
    # timm 1.0.31
    "nadamw": (
        "NAdamW",
        {"betas": (0.9, 0.99)},
        [0.9782547511733384, -0.519008310766909, 0.22795133019836195, -0.012613946198338938, 2.0051207390850987],
    ),
    "laprop": (
        "LaProp",
        {"betas": (0.9, 0.99)},
        [0.976212983228045, -0.5113339256941493, 0.2322324796383915, -0.01321207716024114, 1.996642773556624],
    ),
    "adabelief": (
        "AdaBelief",
        {"betas": (0.9, 0.99)},
        [0.989825735476475, -0.49667337510619297, 0.23465133289161386, -0.017089480592991306, 3.065673273034745],
    ),
    "adabelief-plain": (
        "AdaBelief",
        {"betas": (0.9, 0.99), "rectify": False, "amsgrad": True, "decoupled_decay": False},
        [0.8635402571838812, -0.4500067801465064, 0.23121570844209555, -0.009435893445433718, 2.020697913970756],
    ),
    "adabelief-still": (
        "AdaBelief",
        {"betas": (0.9, 0.99), "degenerated_to_sgd": False, "fixed_decay": True},
        [0.34849366691792366, -0.1747269095080589, 0.08704989927150066, 0.00011893971299692861, 0.6978042596732514],
    ),
    "adamw-caution": (
        "AdamW",
        {"betas": (0.9, 0.99), "caution": True, "amsgrad": True},
        [0.9744916189245802, -0.5142830014419347, 0.23138057471952564, -0.00581952891644208, 2.0007115068303247],
    ),
    "lion-caution": (
        "Lion",
        {"betas": (0.9, 0.99), "caution": True},
        [0.9775897180492887, -0.5074502393959878, 0.24757843326132326, 6.721320888617398e-05, 2.00499257221061],
    ),
    "adan-caution": (
        "Adan",
        {"caution": True},
        [0.9803926002626435, -0.5010335474723142, 0.2404063951707999, -0.00535914557872858, 1.986526764342316],
    ),
    "mars": (
        "MARS",
        {},
        [0.9876234546892236, -0.5132031760177136, 0.23144772877297212, -0.011967902789396564, 1.997504662905129],
    ),
    "lamb-decoupled": (
        "LAMB",
        {"betas": (0.9, 0.99), "decoupled_decay": True},
        [0.9568402181141857, -0.5576089283425903, 0.21033800085031445, -0.0007927546022664821, 2.04828006593825],
    ),
    "lamb-caution": (
        "LAMB",
        {"betas": (0.9, 0.99), "caution": True},
        [0.9295046007827982, -0.5256542352628014, 0.19599481613400255, -0.010673042549471592, 1.9602613782828933],
    ),
    "novograd": (
        "NovoGrad",
        {},
        [0.952900106544083, -0.4764993278527909, 0.2377698162304061, -3.0101655008458983e-05, 1.951015716048579],
    ),
    "novograd-decoupled": (
        "NovoGrad",
        {"grad_averaging": True, "decoupled_decay": True},
        [0.9900448434261421, -0.4950249173120627, 0.24748812959794808, -1.7957972142392892e-06, 1.9823794004008826],
    ),
    # prodigyopt 1.1.2
    "prodigy": (
        "Prodigy",
        {"d0": 1e-2, "lr": 1.0},
        [0.9573882057111386, -0.5746859534595187, 0.18820782999405652, -0.025328194237354815, 2.064313273783065],
    ),
    "prodigy-l2": (
        "Prodigy",
        {"d0": 0.1, "lr": 0.5, "decouple": False, "use_bias_correction": True, "growth_rate": 1.2, "beta3": 0.8},
        [0.5127734670595211, -0.2945552550235519, 0.16594588405625565, -0.04180035693459697, 2.094877951931054],
    ),
    "prodigy-safeguard": (
        "Prodigy",
        {"d0": 0.1, "lr": 0.5, "safeguard_warmup": True, "d_coef": 0.5, "betas": (0.8, 0.9)},
        [0.9213933662394614, -0.5378347829946505, 0.19261771002057287, -0.020713599969014857, 1.9683469922693306],
    ),
    # sophia-opt 0.2.2, the authors' sophia.py; with estimates in tests/test_sophia.py
    "sophia": (
        "SophiaG",
        {"betas": (0.9, 0.99)},
        [0.9800847205492887, -0.5945736380073919, 0.2475610205516379, 4.980049920085862e-05, 2.0596609583220125],
    ),
    # torch_optimizer 0.3.0
    "lamb-clamp": (
        "LAMB",
        {"betas": (0.9, 0.99), "clamp_value": 0.5, "bias_correction": False, "always_adapt": True},
        [0.9872513772566603, -0.5107806587259035, 0.23886310815112255, -0.001889117286801333, 2.0007090729983],
    ),
    # torch-optimi 0.3.3
    "stable_adamw": (
        "StableAdamW",
        {"betas": (0.9, 0.99)},
        [0.9844600853418773, -0.5129778067690672, 0.2334161399648619, -0.008486788576092665, 2.000005740110083],
    ),
    # timm 1.0.31, its SGDW and RMSpropTF
    "sgdw": (
        "SGD",
        {"momentum": 0.9, "nesterov": True, "decoupled_weight_decay": True},
        [0.9899482664428862, -0.4983568856418737, 0.22114042448997293, 0.0484805207004378, 5.141052059148598],
    ),
    "rmsprop_tf": (
        "RMSprop",
        {
            "momentum": 0.9,
            "alpha": 0.9,
            "eps": 0.001,
            "decoupled_weight_decay": True,
            "eps_in_sqrt": True,
            "lr_in_momentum": True,
            "initial_accumulator_value": 1.0,
        },
        [0.989974183898586, -0.49821526831596535, 0.21967211365476924, -0.02227232093397668, 2.112264712355831],
    ),
    "rmsprop_tf-centered": (
        "RMSprop",
        {
            "momentum": 0.9,
            "alpha": 0.9,
            "eps": 0.001,
            "centered": True,
            "eps_in_sqrt": True,
            "initial_accumulator_value": 1.0,
        },
        [0.9483227284944669, -0.4773252153115984, 0.21178495589571997, -0.02349073572805808, 2.143484378138818],
    ),
}
# And after eval().
AVERAGES: dict[str, list[float]] = {
    "adamw_schedule_free": [
        0.9911406177366899,
        -0.4979205153743501,
        0.2490177658031029,
        0.0010148693608510134,
        1.9905795164186089,
    ],
    "adamw_schedule_free-weights": [
        0.9866924245891512,
        -0.5023054425869325,
        0.24367624666327886,
        -0.0036535121910995353,
        1.9929785890546334,
    ],
    "radam_schedule_free": [
        0.9996689591206939,
        -0.5000447008719113,
        0.2497767035344315,
        -9.494497784410746e-05,
        1.9994222662768468,
    ],
    "radam_schedule_free-loud": [
        0.9965378922553312,
        -0.4986408966314077,
        0.24763164432901694,
        0.015509888040153574,
        2.2981443390039344,
    ],
    "sgd_schedule_free": [
        0.9949808811895952,
        -0.4975290660818247,
        0.2490437486253504,
        0.006731348035332775,
        2.0330311420132667,
    ],
}


@pytest.fixture
def counters_in_doubles() -> Iterator[None]:
    """As references that count in Python have them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("package", ["ours", "formulas"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("run", RECORDED)
@pytest.mark.usefixtures("counters_in_doubles")
def test_ten_steps(run: str, dtype: torch.dtype, package: str) -> None:
    name, kwargs, expected = RECORDED[run]
    cls = getattr(fusedopt, name) if package == "ours" else twin(name, kwargs)
    param = Parameter(torch.tensor(START, dtype=dtype))
    optimizer = cls([param], **{**COMMON, **kwargs})
    for t in range(10):
        grad = [math.sin(3 * t + i) * 10.0 ** (i - 2) for i in range(len(START))]
        param.grad = torch.tensor(grad, dtype=dtype)
        optimizer.step()
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    near = partial(pytest.approx, rel=tolerance, abs=tolerance)
    assert param.tolist() == near(expected)
    if package == "ours" and run in AVERAGES:
        optimizer.eval()
        assert param.tolist() == near(AVERAGES[run])
        optimizer.train()
        assert param.tolist() == near(expected)


@pytest.mark.parametrize("beta1", [0.0, 0.6, 0.9995])
def test_the_half_life_of_the_slow_average_grows_evenly(beta1: float) -> None:
    """Also from none at all, where the logarithm is infinite; past the last step, or from above, it stays."""

    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta) if beta else 0.0

    param = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = fusedopt.AdEMAMix([param], betas=(beta1, 0.999, 0.999), t_beta3=10)
    for t in range(1, 13):
        param.grad = torch.ones_like(param)
        optimizer.step()
        beta3 = 1 - optimizer.state[param]["exp_avg_slow"].item()
        optimizer.state[param]["exp_avg_slow"].zero_()
        grown = half_life(beta1) + min(t / 10, 1) * (half_life(0.999) - half_life(beta1))
        assert half_life(beta3) == pytest.approx(min(grown, half_life(0.999)), rel=1e-9)
