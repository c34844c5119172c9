"""The place of the networks that ship: ``exp/nets``, where they are made, or a folder of the installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "shipped"  # a wheel carries exp/nets/*.safetensors there, see setup.py

NETS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "exp" / "nets"
"""Where the shipped networks lie."""
