"""Mutants of the package's Python."""

from mutant import Mutant

MUTANTS = (
    Mutant(
        "fusedopt/_core/lists.py",
        "[int(step) - 1 for step in",
        "[int(step) for step in",
        "a function's counters have been counted already",
        "tests/test_functional.py -k sparse",
    ),
    Mutant(
        "fusedopt/_core/lists.py",
        """        for name in _SCALING:
            optimizer.__dict__.pop(name, None)
""",
        "",
        "the next call is skipped for an infinity of this one's",
        "tests/test_functional.py -k infinity",
    ),
    Mutant(
        "fusedopt/_core/optimizer.py",
        "for sparse in (True, False):",
        "for sparse in (False, True):",
        "torch refuses sparse gradients after dense ones were stepped",
        "tests/test_fallback.py",
    ),
    Mutant(
        "fusedopt/_core/optimizer.py",
        "plan.step(self, engine_only=True, divisor=divisor)",
        "plan.step(self, engine_only=True)",
        "what is stepped beside torch's share is not clipped",
        "tests/test_max_grad_norm.py tests/test_fallback.py tests/test_clipping.py",
    ),
    Mutant(
        "fusedopt/_core/optimizer.py",
        "if zero_grad and (not in_pass or plan.shares_grads):",
        "if zero_grad and not in_pass:",
        "gradients that share memory are not cleared",
        "tests/test_edited_params.py",
    ),
    Mutant(
        "fusedopt/_core/max_grad_norm.py",
        'self.__dict__.get("grad_scale"), self._max_grad_norm',
        "None, self._max_grad_norm",
        "gradients are clipped as they are before they are unscaled",
        "tests/test_grad_scaler.py tests/test_max_grad_norm.py",
    ),
    Mutant(
        "fusedopt/_core/checkpoints.py",
        "            self.__dict__.clear()\n            self.__dict__.update(before)\n            raise",
        "            raise",
        "a file that is refused is loaded halfway",
        "tests/test_state.py tests/test_precision_state.py tests/test_foreign_files.py",
    ),
    Mutant(
        "fusedopt/_core/checkpoints.py",
        "wide = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.float32",
        "wide = value.dtype",
        "counters that torch has rounded to 16 bits stay there",
        "tests/test_state.py tests/test_precision_state.py",
    ),
    Mutant(
        "fusedopt/_core/averaging.py",
        "tensor.copy_(value)",
        "pass",
        "params stay their average when the context ends",
        "tests/test_averages.py",
    ),
    Mutant(
        "fusedopt/_release.py",
        "        param.grad = None\n",
        "",
        "a gradient is kept once its update is made",
        "tests/test_release.py",
    ),
    Mutant(
        "fusedopt/optimizers/muon.py",
        "triples[min(step, len(triples) - 1)]",
        "triples[0]",
        "every iteration takes the first triple",
        "tests/test_beyond.py -k coefficients",
    ),
)
