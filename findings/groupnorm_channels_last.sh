#!/usr/bin/env bash
# torch 2.14.1: GroupNorm on the CPU is a hundred to thousands of times less exact in memory format channels_last.
#
# One would guess: a memory format changes speed, and last digits at most.
# What happens: of a contiguous tensor the mean is taken off before squares are summed. Of one in channels_last the
#   variance is the mean of squares less the square of the mean, in float32: where a group's mean is large against its
#   spread, the digits of the variance cancel. No warning is given.
# Why it matters: U-Nets of diffusion models are put into channels_last for speed. An image that is nearly constant, or
#   features with a large mean, then come out several per cent off, while ordinary test inputs agree to 1e-6; a parity
#   test passes and a flat sky does not.
#
# Output seen (Python 3.11, torch 2.14.1 on x86-64); errors are largest differences to float64, relative:
#   mean   spread   contiguous   channels_last
#      0    0.010      8.5e-08         1.2e-07
#      1    0.100      2.3e-07         3.1e-05
#      1    0.010      4.0e-06         1.5e-03
#      1    0.001      2.6e-05         1.6e-01
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > "$folder/norm.py" <<'PYTHON'
import torch

norm = torch.nn.GroupNorm(8, 32, eps=1e-6)
print("mean   spread   contiguous   channels_last")
found = {}
for mean, spread in ((0.0, 0.01), (1.0, 0.1), (1.0, 0.01), (1.0, 0.001)):
    x = mean + spread * torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    truth = torch.nn.functional.group_norm(x.double(), 8, eps=1e-6)
    with torch.no_grad():
        answers = norm(x), norm(x.to(memory_format=torch.channels_last))
    errors = [((y.double() - truth).abs().max() / truth.abs().max()).item() for y in answers]
    found[mean, spread] = errors
    print(f"{mean:4.0f} {spread:8.3f} {errors[0]:12.1e} {errors[1]:15.1e}")
assert found[0.0, 0.01][1] < 1e-6, "without a mean the formats differ too now"
for case, (contiguous, last) in found.items():
    if case[0]:
        assert last > 20 * contiguous, f"at {case} channels_last is as exact now: {last:.1e}, {contiguous:.1e}"
assert found[1.0, 0.01][1] > 1e-3, "the error of channels_last is smaller now"
PYTHON
"$folder/venv/bin/python" "$folder/norm.py"
