#!/usr/bin/env bash
# diffusers 0.42.1: DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=3) converges with order 2.
#
# One would guess: order 3, as the option is called.
# What happens: the data prediction is a quadratic in lambda through its last three values. Its last coefficient D2 is
#   the divided difference, h^2 f''/2, but it is multiplied by the integral that h^2 f'' would need, so that half of the
#   curvature is left out. With the factor doubled, the same function has order 3.
# Why it matters: a faithful port fails a test of its declared order, and one that takes the whole curvature does not
#   agree with this scheduler: both are right, of two different solvers.
#
# The update is plain arithmetic, so the function of the installed package runs here on NumPy's numbers in torch's
# place: no torch has to be installed. Data: 0.3 N(-1, 0.2^2) + 0.7 N(1, 0.5^2), whose data prediction is known; the exact
# values of x and D stand at the first three nodes, so that no lower-order start hides the order.
#
# Output seen (Python 3.11, NumPy 2.4.6):
#   steps   as shipped  order   D2 doubled  order
#      20     4.81e-04            2.61e-04
#      40     1.34e-04   1.84     3.34e-05   2.97
#      80     3.57e-05   1.91     4.12e-06   3.02
#     160     9.19e-06   1.96     5.10e-07   3.01
#     320     2.33e-06   1.98     6.33e-08   3.01
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps diffusers==0.42.1 numpy==2.4.6

cat > "$folder/order.py" <<'PYTHON'
import ast
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

package = Path(importlib.util.find_spec("diffusers").origin).parent
source = (package / "schedulers" / "scheduling_dpmsolver_multistep.py").read_text()
scheduler = next(
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.ClassDef) and node.name == "DPMSolverMultistepScheduler"
)
NAMES = ("multistep_dpm_solver_third_order_update", "_sigma_to_alpha_sigma_t")
functions = [node for node in scheduler.body if isinstance(node, ast.FunctionDef) and node.name in NAMES]
space = {"torch": SimpleNamespace(log=np.log, exp=np.exp, sqrt=np.sqrt, Tensor=np.ndarray)}
exec(compile(ast.Module(functions, []), "diffusers", "exec"), space)


class Scheduler:
    multistep = space[NAMES[0]]
    _sigma_to_alpha_sigma_t = space[NAMES[1]]
    config = SimpleNamespace(algorithm_type="dpmsolver++", use_flow_sigmas=False)


WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 1.0]), np.array([0.2, 0.5])


def denoise(z, sigma):
    """E[x0 | z] for z = x0 + sigma * noise."""
    total = STDS**2 + sigma**2
    log = np.log(WEIGHTS) - (z - MEANS) ** 2 / (2 * total) - np.log(total) / 2
    share = np.exp(log - log.max())
    return (share / share.sum()) @ (MEANS + STDS**2 / total * (z - MEANS))


def flow(z, start, end, steps):
    """The exact probability flow, dz/dlambda = D - z with lambda = -log sigma, by the classical Runge-Kutta method."""
    h = math.log(start / end) / steps
    slope = lambda y, at: denoise(y, start * math.exp(-at)) - y
    for at in h * np.arange(steps):
        a = slope(z, at)
        b = slope(z + h / 2 * a, at + h / 2)
        c = slope(z + h / 2 * b, at + h / 2)
        z = z + h / 6 * (a + 2 * b + 2 * c + slope(z + h * c, at + h))
    return z


def alpha(sigma):
    return 1 / np.sqrt(1 + sigma**2)


def error(steps, whole):
    """Of z at the last level; ``whole`` adds the half of the curvature that is left out."""
    sigmas = np.geomspace(10.0, 0.1, steps + 1)
    self = Scheduler()
    self.sigmas = sigmas
    zs = [4.0]
    for start, end in zip(sigmas[:2], sigmas[1:3]):
        zs.append(flow(zs[-1], start, end, 100))
    z, past = zs[-1], [denoise(z, sigma) for z, sigma in zip(zs, sigmas[:3])]
    for step in range(2, steps):
        self.step_index, after = step, sigmas[step + 1]
        x = self.multistep(past[-3:], sample=alpha(sigmas[step]) * z)
        if whole:
            h = math.log(sigmas[step] / after)
            curvature = (past[-1] - 2 * past[-2] + past[-3]) / 2  # D2 of equal steps
            x = x - alpha(after) * ((math.exp(-h) - 1 + h) / h**2 - 0.5) * curvature
        z = x / alpha(after)
        past.append(denoise(z, after))
    return abs(z - TRUTH)


TRUTH = flow(4.0, 10.0, 0.1, 2000)
print("steps   as shipped  order   D2 doubled  order")
before = None
for steps in (20, 40, 80, 160, 320):
    errors = [error(steps, whole) for whole in (False, True)]
    orders = [math.log2(b / e) for b, e in zip(before, errors)] if before else [None, None]
    cells = [f"{e:12.2e} {'' if o is None else f'{o:6.2f}':>6}" for e, o in zip(errors, orders)]
    print(f"{steps:5d} {' '.join(cells)}".rstrip())
    before = errors
assert 1.9 < orders[0] < 2.2, f"the order is {orders[0]:.2f} now"
assert 2.9 < orders[1] < 3.2, f"with the whole curvature the order is {orders[1]:.2f}, so this check is wrong"
PYTHON
"$folder/venv/bin/python" "$folder/order.py"
