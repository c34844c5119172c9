"""What the configurations of a folder of diffusers say of its network: levels, times, what it predicts.

The library ignores what a class does not take. What is ignored there and changes what the network means is honoured
here, or refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from dmcmc_core.checkpoints.diffusers_folder import say
from dmcmc_core.errors import UserError, check_whole, is_number, switch, unknown

EXPLODING = "ScoreSdeVeScheduler"
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
"""Schedulers around whose network stand the scalings of Karras et al. 2022."""
PRESERVING = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
    "SASolverScheduler",
    "RePaintScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
)
"""Schedulers whose levels are made of betas."""
PARTICULAR = ("UnCLIPScheduler", "DPMSolverSDEScheduler")
"""Others of them: one has a single kind of betas, the other needs a library of its own."""
SCHEDULERS = (EXPLODING, *EDM, *PRESERVING, *PARTICULAR)
CONSISTENCY = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler")
OLD_KEYS = {"timesteps": "num_train_timesteps"}
"""Key of a scheduler in the library's first versions -> its name since."""
OLD_NETWORK_KEYS = {
    "image_size": "sample_size",
    "num_res_blocks": "layers_per_block",
    "block_channels": "block_out_channels",
    "down_blocks": "down_block_types",
    "up_blocks": "up_block_types",
    "downscale_freq_shift": "freq_shift",
    "resnet_num_groups": "norm_num_groups",
    "resnet_act_fn": "act_fn",
    "resnet_eps": "norm_eps",
    "num_head_channels": "attention_head_dim",
}
"""The same of a network."""
WITHOUT_MEANING = {"tensor_format", "timestep_values", "name_or_path"}
"""Keys of old files that say nothing of the network."""
AVERAGES = {"decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}
"""Keys that the library's averaging of weights leaves in the configuration of ``unet_ema``."""
NEUTRAL = {"snr_shift_scale": 1.0, "use_flow_sigmas": False, "timestep_type": "discrete"}
"""Key of a scheduler that changes levels or times -> the value that changes nothing."""


def family(kind: Any) -> str | None:
    """Return what the networks of a scheduler have in common: ``exploding``, ``edm`` or ``preserving``."""
    if kind == EXPLODING:
        return "exploding"
    return "edm" if kind in EDM else "preserving" if kind in (*PRESERVING, *PARTICULAR) else None


def arguments(made: Any) -> dict[str, Any]:
    """Return what a class of the library takes, by name, and its defaults."""
    taken = inspect.signature(made.__init__).parameters.values()
    return {p.name: p.default for p in taken if p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD}


def renewed(given: dict[str, Any], names: dict[str, str], where: str) -> dict[str, Any]:
    """Return a configuration with the names of today; UserError where an old and a new one say two things."""
    for old in names.keys() & given.keys():
        new = names[old]
        if given.get(new, given[old]) != given[old]:
            raise UserError(
                f"{where} has {old}={given[old]!r:.40} and {new}={given[new]!r:.40}, two names of one thing"
            )
    return {names.get(name, name): value for name, value in given.items()}


def check_types(given: dict[str, Any], made: Any, where: str) -> None:
    """Raise UserError for text that stands for a switch or a number, which the library would take as it is."""
    for name, default in arguments(made).items():
        if name not in given:
            continue
        value = given[name]
        if isinstance(default, bool):
            switch(f"{name} in {where}", value)
        elif is_number(default) and isinstance(value, str | bool):
            raise UserError(f"{name} in {where} must be a number, not {value!r:.40}")


def check_network(about: dict[str, Any], steps: dict[str, Any], library: Any, where: str) -> None:
    """Raise UserError for a key that ``UNet2DModel`` ignores, unless it is switched off or says nothing of the network.

    Args:
        about: the configuration of the network.
        steps: that of its scheduler, which may say the same.
        library: diffusers.
        where: what errors call the file.
    """
    check_types(about, library.UNet2DModel, where)
    known, others = arguments(library.UNet2DModel), arguments(library.UNet2DConditionModel)
    for name, value in about.items():
        if name in known or name.startswith("_") or name in AVERAGES | WITHOUT_MEANING or value in (None, False):
            continue
        if (name in others and value == others[name]) or (name in steps and value == steps[name]):
            continue
        raise UserError(
            f"{where} has {name}={value!r:.60}, which diffusers ignores in a UNet2DModel: what it changes is not known "
            "here, remove it if that is nothing"
        )


def check_index(index: dict[str, Any], steps: dict[str, Any], where: str) -> None:
    """Raise UserError where the index of a pipeline says something else of its network than the scheduler does."""
    named = index.get("scheduler")
    other = named[1] if isinstance(named, list) and len(named) == 2 else None
    if family(other) and family(other) != family(steps.get("_class_name")):
        raise UserError(f"{where} names a scheduler {other}, and its configuration is of a {steps['_class_name']}")
    for name in ("prediction_type", "predict_epsilon", "rescale_betas_zero_snr", "sigma_data", *NEUTRAL):
        if name in index and index[name] != steps.get(name):
            raise UserError(
                f"{where} has {name}={index[name]!r:.60}, and its scheduler {steps.get(name)!r:.60}: diffusers takes "
                "the latter alone, remove what is wrong"
            )


def scheduler_of(steps: dict[str, Any], library: Any, path: Path, by_library: Callable[..., Any]) -> Any:
    """Return the scheduler of a configuration, by the library.

    Args:
        steps: the configuration, of one of :data:`SCHEDULERS`.
        library: diffusers.
        path: of the folder, for errors.
        by_library: (make, given, what) -> what is made, the library's errors as UserError.

    Raises:
        UserError: for values of another type, and for keys that a class ignores and that change the network's levels.
    """
    where, made = f"the scheduler of {path}", getattr(library, steps["_class_name"])
    steps = renewed(steps, OLD_KEYS, where)
    check_types(steps, made, where)
    for name, most in (("num_train_timesteps", 10**5), ("solver_order", 16)):
        check_whole(f"{name} in {where}", steps.get(name, 1), 1, most)
    zero = switch(f"rescale_betas_zero_snr in {where}", steps.get("rescale_betas_zero_snr", False))
    _check_ignored(steps, library, made, where)
    scheduler = by_library(made.from_config, steps, where)
    if zero and family(made.__name__) == "preserving" and "rescale_betas_zero_snr" not in arguments(made):
        betas = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
        betas = {name: betas[name] for name in betas.keys() & arguments(library.DDIMScheduler).keys()}
        scheduler.alphas_cumprod = by_library(library.DDIMScheduler.from_config, betas, where).alphas_cumprod
    return scheduler


def _check_ignored(steps: dict[str, Any], library: Any, made: Any, where: str) -> None:
    taken = arguments(made)
    everything = WITHOUT_MEANING | {"predict_epsilon", "prediction_type"}
    everything = everything.union(*(arguments(getattr(library, name)) for name in SCHEDULERS if hasattr(library, name)))
    for name, value in steps.items():
        if name in taken or name.startswith("_") or value is None:
            continue
        if name == "snr_shift_scale" and value != NEUTRAL[name]:
            raise UserError(f"{where} has {name}={value!r:.40}, which {made.__name__} ignores: its levels are unknown")
        if name not in everything:
            say(f"{where} has {name}={value!r:.40}, which diffusers ignores, and so does this project")


def prediction(scheduler: Any, known: Iterable[str], where: str) -> str:
    """Return what a network predicts, one of ``known``.

    Raises:
        UserError: for another prediction, two that contradict each other, and times other than those of its scheduler.
    """
    c = scheduler.config
    name = c.get("prediction_type", "epsilon")
    if "predict_epsilon" in c and c["predict_epsilon"] is not None:  # as the library had it until 2022
        old = "epsilon" if switch(f"predict_epsilon in {where}", c["predict_epsilon"]) else "sample"
        stored = "prediction_type" in c and "prediction_type" not in c.get("_use_default_values", ())
        if stored and name != old:
            raise UserError(f"{where} has predict_epsilon={c['predict_epsilon']} and prediction_type={name!r:.40}")
        name = old
    known = tuple(known)
    if not isinstance(name, str) or name not in known:
        raise unknown(f"prediction_type in {where},", name, known)
    for key in ("timestep_type", "use_flow_sigmas") if hasattr(scheduler, "alphas_cumprod") else ():
        if c.get(key) not in (None, NEUTRAL[key]):
            raise UserError(f"{where} tells its network other times than its timesteps, by {key}={c[key]!r:.40}")
    return name


def levels_of(scheduler: Any, path: Path) -> Tensor:
    """Return sigma at every timestep, (T,) float64, without a last one that is all noise, where sigma is infinite."""
    kept = scheduler.alphas_cumprod.double().reshape(-1)
    levels = ((1 - kept) / kept).sqrt()
    levels = levels[:-1] if levels[-1:].isinf().any() else levels
    if len(levels) < 2 or not levels.isfinite().all() or levels[0] <= 0 or not (levels.diff() > 0).all():
        raise UserError(
            f"the betas of the scheduler of {path} must give two or more noise levels that rise from above 0"
        )
    return levels


def edm_options(scheduler: Any, path: Path) -> dict[str, float]:
    """Return the options of the scalings of Karras et al. 2022; UserError for a sigma_data that makes none."""
    sigma_data = scheduler.config.sigma_data
    if not is_number(sigma_data) or not 0 < sigma_data < 1e6:
        raise UserError(f"sigma_data in the scheduler of {path} must be a number above 0, not {sigma_data!r:.40}")
    return {"sigma_data": float(sigma_data)}
