"""``convert``: a published checkpoint as a safetensors file with its card."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmcmc_core.workbench.cli.verb import PROGRAM, Verb


def arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of ``convert``."""
    p.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="a .pth of score_sde, a .pkl of EDM or EDM2, a checkpoint of Flax, or a folder of diffusers",
    )
    p.add_argument("out", type=Path, metavar="OUT", help="the .safetensors file to write")
    p.add_argument("--config", metavar="C", help="of a file of score_sde without a .json beside it: a name or a file")
    p.add_argument(
        "--ema-std",
        type=float,
        metavar="S",
        help="make the network of this EMA length of the snapshots of EDM2 in the folder IN, "
        "network-snapshot-KIMG-STD.pkl (above 0, at most 0.288)",
    )


def convert(a: argparse.Namespace) -> int:
    """Write the file and print what it holds."""
    from dmcmc_core import checkpoints

    card = checkpoints.convert(a.source, a.out, a.config, a.ema_std)
    kind = "t" if "t_min" in card else "sigma"  # the network's second argument
    print(
        f"{a.out}: {card['parameters']:,} parameters, {kind} {card[f'{kind}_min']:g} to {card[f'{kind}_max']:g}, "
        f"data in {card['data_range']}, from {card['source']} (SHA-256 {card['source_sha256']})"
    )
    return 0


CONVERT = Verb(
    convert,
    arguments,
    "Read a published checkpoint, without running any code in it, and write it as safetensors with its card and\n"
    "the SHA-256 of the source inside. sample takes both; the converted file needs no configuration beside it.",
    f"example:\n  {PROGRAM} convert exp/ve/checkpoint_24.pth exp/ve/cifar10.safetensors "
    "--config ve_cifar10_ncsnpp_continuous",
)
