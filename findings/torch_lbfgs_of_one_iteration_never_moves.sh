#!/usr/bin/env bash
# LBFGS(max_iter=1, line_search_fn="strong_wolfe"), the usual way to look at every iteration, never moves a param since torch 2.10.
#
# Versions: torch 2.9.1 and 2.13.0.
# Guess: a step of one iteration makes one line search and moves the params to what it finds; some calls of step() with max_iter=1 get
#   about as far as one call with as many iterations.
# Behaviour: max_eval, by default five quarters of max_iter, is 1, and the evaluation at the start uses it up. From torch 2.10 on
#   the line search gets what is left of max_eval as its limit, makes one trial, throws it away and goes back to where it began.
#   The params keep their bits for as many steps as one likes, without a warning. In torch 2.9 the search took up to 25
#   evaluations whatever max_eval was, and one iteration a step is as good as 40.
# Output (Rosenbrock's function from -1.2, 1):
#   torch 2.9.1+cu128      max_iter=40, 1 calls: loss 24.2 to 4.22e-10, 43 evaluations
#   torch 2.9.1+cu128      max_iter=1, 40 calls: loss 24.2 to 4.22e-10, 82 evaluations
#   torch 2.13.0+cpu       max_iter=40, 1 calls: loss 24.2 to 4.22e-10, 43 evaluations
#   torch 2.13.0+cpu       max_iter=1, 40 calls: loss 24.2 to 24.2, 80 evaluations
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/run.py" <<'PY'
import sys

import torch

moves_with_one = sys.argv[1] == "moves"


def run(max_iter, calls):
    param = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = torch.optim.LBFGS([param], max_iter=max_iter, line_search_fn="strong_wolfe")
    evaluations = 0

    def loss():
        return (1 - param[0]) ** 2 + 100 * (param[1] - param[0] ** 2) ** 2

    def closure():
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    first = loss().item()
    for _ in range(calls):
        optimizer.step(closure)
    told = f"loss {first:.1f} to {loss().item():.3g}, {evaluations} evaluations"
    print(f"torch {torch.__version__:16} max_iter={max_iter}, {calls} calls: {told}")
    return param.tolist() != [-1.2, 1.0]


if not run(40, 1) or run(1, 40) != moves_with_one:
    sys.exit("the behaviour has changed")
PY
for case in "2.9.1 moves" "2.13.0 stays"; do
  read -r version behaviour <<<"$case"
  python3 -m venv "$dir/venv-$version"
  "$dir/venv-$version/bin/pip" install --quiet "torch==$version" numpy
  "$dir/venv-$version/bin/python" -W ignore "$dir/run.py" "$behaviour"
done
