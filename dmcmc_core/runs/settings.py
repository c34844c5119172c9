"""Settings of a run, by name, each with what it may be; it needs no torch, so that help is there at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BLOCK = 64
LARGEST_BLOCK = 4096
STATISTICS = 200
"""Images that gains of a preconditioner come from, as published."""
POSTERIORS = ("exact", "classifier", "residual")
SEARCHES = ("dlg+auto", "auto")
"""Samplers of the command line whose settings :mod:`dmcmc_core.runs.tuning` finds."""
TUNING = "tuning.json"
"""The file of a run's folder that tells how its settings were found, if they were."""
CLASS = ("label", "guidance", "unconditional", "guide")
"""Settings that choose a class and guide: they belong to the model."""
LEVELS = ("sigma_min", "sigma_max")
"""Settings that narrow the noise levels: they belong to the model too."""
OF_MODEL = (*CLASS, *LEVELS, "mean", "dtype", "compile", "layout")
"""Settings that a fit takes and trials keep, as they make the model: the mean of its data and how it computes too."""
GAINS = ("preconditioner", "statistics", "alpha", "omega")
"""Settings that precondition: they belong to the model too."""
SOLVER = "a file of the command fit, for the model as it is run (fitted once, and kept in exp/cache/fitted)"
"""What the option ``file`` of the sampler ``fitted`` may be."""
SCHEDULES = ("karras", "log_uniform", "time_uniform", "shifted_power")
DIFFUSIONS = ("VP", "SubVP", "VE", "BDM", "CLD")
CASTS = ("round", "truncate")
DTYPES = ("float32", "tf32", "bfloat16", "float16")
LAYOUTS = ("channels_last", "contiguous")

ELSEWHERE = {
    **dict.fromkeys(["steps", "num_steps", "num_inference_steps"], "nfe"),
    **dict.fromkeys(["batch", "batch_size", "bs"], "block"),
    **dict.fromkeys(["scheduler", "method"], "sampler"),
    **dict.fromkeys(["checkpoint", "ckpt", "network"], "model"),
    **dict.fromkeys(["count", "samples", "num_samples", "num_images"], "num"),
    **dict.fromkeys(["cfg", "guidance_scale", "cfg_scale"], "guidance"),
    **dict.fromkeys(["class", "class_idx", "class_labels"], "label"),
}
"""Names that other programs have for what a run is told -> its name here."""

SETTINGS = {
    "start": "mean of the noise that all begins with: zero or mean (mean, where the model knows that of its data)",
    "mean": "mean of the data, for a model that knows none: a number in units of its data or one for each channel, "
    "cifar10 or imagenet, a reference's name, a folder of PNG or JPEG files, an NPZ or NPY file, a run's folder, or "
    "samples: that of 64 images of its own, made once for 3,200 evaluations and kept (what the model knows)",
    "sigma_max": "noise level that all begins at, within the model's own (the start in its card; else its last, unless "
    "that is far above what its data needs)",
    "sigma_min": "last noise level above 0, within the model's own (the model's first)",
    "schedule": f"grid of noise levels: {', '.join(SCHEDULES)} (the integrator's own)",
    "rho": "of the grid karras, above 0: the larger, the more levels lie near sigma_min (7.0)",
    "levels": "noise levels of the integrator, at least 1 (as many as the budget pays for)",
    "speed_up": "k, for int(1000 / k) levels, as Preconditioned Diffusion Sampling counts them (none)",
    "tweedie": "noise level of one more denoising after the integrator, from sigma_min to sigma_max (none)",
    "posterior": f"p(sigma | x) of the chains: {', '.join(POSTERIORS)} (the first of these that there is), or the "
    "file of a noise-level classifier for images and levels like the model's",
    "block": f"rows of one network evaluation, 1 to {LARGEST_BLOCK}, on which last digits of images depend, and the "
    f"most chains of a group; exact models compute in blocks of their own ({BLOCK})",
    "cast": f"how values become 256 levels: {' or '.join(CASTS)}, as the code published with DMCMC does (round)",
    "dtype": f"number format of the network: {', '.join(DTYPES)}, as far as the processor has units for it (float32)",
    "compile": "true to compile the network by torch, for about a minute, once and kept: the same images but for their "
    "last digits; what it gains is timed and said (false)",
    "layout": f"how the weights of the network lie in memory: {', '.join(LAYOUTS)}, or auto, the faster one by a short "
    "trial: the same images but for their last digits (as they are: channels_last, those of a module of one's own as "
    "it has them)",
    "label": "class of every image, for a model with classes: a whole number from 0; a list such as [0, 1, 2], taken "
    "in turn by images (or chains); each, all classes in turn; or random, drawn for each image, without chains (none)",
    "guidance": "w of guidance, D_0 + w (D - D_0), at least 0, D_0 that of no class or of guide; any but 0 and 1 "
    "costs two network evaluations a call (1.0)",
    "unconditional": "class that stands for none in guidance (what the checkpoint tells)",
    "guide": "another network for D_0, a name or a file: a smaller one, or one without classes (none)",
    "preconditioner": "M of the chains, of predictor_corrector and of reverse_diffusion: frequency, pixel or both, "
    "gains from images, or a .safetensors file that Preconditioner.save wrote (none)",
    "statistics": f"images that such gains come from, {STATISTICS} of them: a reference's name, a folder of PNG or "
    "JPEG files, an NPZ or NPY file, or a folder of samples, of the model's own too (the images of an exact model)",
    "alpha": "strength of such gains, above 1, the smaller the stronger, inf for none (5.0)",
    "omega": "strength of a skew term beside M, for langevin, mala and those integrators (0.0)",
}
"""Settings of a run beside those of the chains and of the integrator: what each may be (and is by default)."""
LINEAR_SETTINGS = {
    "sde": f"diffusion through which a denoiser is asked: {', '.join(DIFFUSIONS)} (that of a network for one)",
    "kappa": "of the grid of times, uniform in t^(1 / kappa), above 0 (2.0)",
    "levels": "times of that grid, at least 2 (as many as the budget pays for)",
    "last": "one more denoising, a call: clean, the predicted image; euler, as published; or null (clean)",
    "sigma_max": "level above which a denoiser is taken for linear, within its own (its last)",
    "sigma_min": "level below which a denoiser stays as it is there, within its own (its first)",
    "cast": SETTINGS["cast"],
}
"""Settings of a run of a linear diffusion, beside the options of its sampler."""
LINEAR_SAMPLERS: dict[str, Mapping[str, Any]] = {
    "gddim": {"degree": None, "lam": 0.0, "corrector": False, "root": "R", "released": False},
    "sde+euler_maruyama": {"lam": 1.0, "released": False},
    "sde+heun": {},
    "sde+sscs": {},
    "sde+ancestral": {},
}
"""Samplers of linear diffusions that a run has, with their options and defaults; ``last`` is one of all."""
LINEAR_NAMES = {name: name.removeprefix("sde+") for name in LINEAR_SAMPLERS}
"""Their names in :data:`dmcmc_core.gddim.SAMPLERS`."""
