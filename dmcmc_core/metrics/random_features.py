"""Features of an untrained network: for images of any size and number of channels, where no classifier is at hand."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dmcmc_core.errors import UserError


class RandomConv(nn.Module):
    """An untrained convolutional network with fixed weights: (B, C, H, W) in [0, 1] with H, W >= 8 -> (B, 64).

    Four 3x3 layers with ReLU between them (32, 32, 32 and 16 channels, the second and third of stride 2), normal
    weights of variance 2 / fan-in (He et al. 2015), the mean over each quarter of the image. Three quarters of the
    first filters are made to sum to 0 and three times larger: through plain random filters the brightness of the image
    drowns everything, through these the distance also sees blur, noise and mixtures of images. Features are multiplied
    by 3, which brings their mean square on ``glyphs32`` near 1, where the kernel of KID is neither linear nor a bare
    cube.
    """

    WIDTHS, STRIDES = (32, 32, 32, 16), (1, 2, 2, 1)

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for width, stride in zip(self.WIDTHS, self.STRIDES, strict=True):
            conv = nn.utils.skip_init(  # no draw of the global generator for weights that are replaced at once
                nn.Conv2d, channels, width, 3, stride, padding=1, padding_mode="reflect", bias=False
            )
            weight = torch.randn(conv.weight.shape, generator=generator) * (2 / (9 * channels)) ** 0.5
            if not layers:
                edges = weight[: 3 * width // 4]
                edges.sub_(edges.mean((2, 3), keepdim=True)).mul_(3)
            conv.weight = nn.Parameter(weight, requires_grad=False)
            layers += [conv, nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return 3 * self.layers(2 * images - 1)


def random_conv() -> Callable[[Tensor], Tensor]:
    """Return :class:`RandomConv` of seed 0, for as many channels as the images have."""
    of_channels = functools.cache(lambda channels: RandomConv(channels).eval())

    def network(images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 8:
            raise UserError(f"random-conv needs images of at least 8x8 pixels, not {tuple(images.shape[-2:])}")
        return of_channels(images.shape[1]).to(images.device)(images)

    return network
