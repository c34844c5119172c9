"""Architectures of networks: score networks, noise-level classifiers, classifiers of images.

What a file of one looks like is known to :mod:`dmcmc_core.checkpoints`, how one is trained to
:mod:`dmcmc_core.training`.
"""
