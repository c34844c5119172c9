"""Names that other programs have for samplers: those of k-diffusion and its interfaces, and schedulers of diffusers."""

from __future__ import annotations

import functools
import re

from dmcmc_core.errors import LOG

DDIM = "DDIM without noise is Euler's method in sigma for the probability flow; its own grid is schedule=time_uniform"
DDPM = "an ancestral step has the variance of the posterior, fixed_small; DDPM's own grid is schedule=time_uniform"
EDM = "the sampler of EDM is Heun's method on karras levels; with its noise it is heun_churn"
SOLVER = "DPM-Solver++(2M), of the second order with several steps"
ALIASES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(["ddim", "ddimsampler"], ("euler", DDIM)),
    **dict.fromkeys(["keuler", "eulerdiscrete", "edmeuler"], ("euler", "Euler's method in sigma")),
    **dict.fromkeys(["edm", "kheun", "heundiscrete", "heun2", "edmheun"], ("heun", EDM)),
    **dict.fromkeys(["edmstochastic", "edmsde", "edmchurn"], ("heun_churn", "EDM's sampler with noise")),
    **dict.fromkeys(["eulera", "keulera", "eulerancestral", "keulerancestral", "eulerancestraldiscrete"], (
        "ancestral", "an Euler step below the next level, then noise up to it, is the ancestral step")),
    **dict.fromkeys(["ddpm"], ("ancestral", DDPM)),
    **dict.fromkeys(["dpmpp2m", "dpmpp2mkarras", "kdpmpp2m", "dpmsolverpp", "dpmsolverpp2m", "dpmsolvermultistep",
                     "edmdpmsolvermultistep"], ("dpmpp_2m", SOLVER)),
    **dict.fromkeys(["dpmpp3m", "dpmsolverpp3m"], ("dpmpp_3m", "DPM-Solver++(3M), of the third order")),
    **dict.fromkeys(["deismultistep", "tabdeis", "tab"], ("deis", "DEIS with polynomials in time")),
    **dict.fromkeys(["unipcmultistep", "unipcbh2"], ("unipc", "UniPC")),
    **dict.fromkeys(["pc", "pcsampler", "scoresdeve"], ("predictor_corrector", "a predictor and a corrector a level")),
    **dict.fromkeys(["em"], ("euler_maruyama", "Euler-Maruyama")),
}  # fmt: skip
"""Names as :func:`plain` writes them -> the sampler that it is, and why."""
NEAR = {
    **dict.fromkeys(["pndm", "plms", "lms", "klms", "lmsdiscrete", "ab", "adamsbashforth"], "ipndm"),
    **dict.fromkeys(["dpmsolver", "dpm2", "kdpm2", "kdpm2discrete", "dpmsolver2", "dpmpp2s", "dpmsolversinglestep",
                     "dpmfast", "dpmsolver3"], "dpmpp_2m"),
    **dict.fromkeys(["dpm2a", "kdpm2ancestral", "kdpm2ancestraldiscrete", "dpmpp2sa", "dpmpp2sancestral"], "ancestral"),
    **dict.fromkeys(["dpmppsde", "dpmpp2msde", "dpmpp3msde", "dpmsolversde", "sde", "reversesde"], "euler_maruyama"),
    **dict.fromkeys(["dpmadaptive", "rk", "dopri5", "ode", "scipy", "odeint"], "rk45"),
    **dict.fromkeys(["rk4", "rungekutta", "midpoint"], "rho_rk"),
    **dict.fromkeys(["langevin", "ald", "smld", "ncsn"], "predictor_corrector"),
    **dict.fromkeys(["churn", "stochasticheun"], "heun_churn"),
}  # fmt: skip
"""Names of samplers that are not here -> the one here that is nearest in what it does."""


def plain(name: str) -> str:
    """Return a name without case, spaces, hyphens and brackets, and without what it says of its kind."""
    name = name.casefold().replace("++", "pp").removeprefix("sample_").removesuffix("scheduler")
    return re.sub(r"[\s_()-]", "", name)


def known_as(sampler: str) -> str:
    """Return the name here of a sampler, with ``dlg+`` before it or not; another name of one is said once.

    A name that is not known under another one comes back as it is.
    """
    if not isinstance(sampler, str):
        return sampler
    name = sampler.removeprefix("dlg+")
    if plain(name) not in ALIASES or name == ALIASES[plain(name)][0]:
        return sampler
    here, why = ALIASES[plain(name)]
    _say(f"{name} is taken as {here}: {why}")
    return sampler.removesuffix(name) + here


def near(sampler: str) -> str | None:
    """Return the sampler here that does most nearly what one does that is not here; None where nobody knows."""
    name = str(sampler).removeprefix("dlg+")
    found = NEAR.get(plain(name))
    return None if found is None else str(sampler).removesuffix(name) + found


@functools.cache
def _say(sentence: str) -> None:
    """Say a sentence once in a process."""
    LOG.warning(sentence)
