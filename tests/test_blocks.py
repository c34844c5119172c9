"""Blocks of networks: what is computed in place, and that nobody can tell."""

import pytest
import torch
import torch.nn.functional as F

from dmcmc_core.nets import blocks, unet

KINDS = {
    "plain": lambda: blocks.Block(8, 8, 6, scale=0.5**0.5),
    "up": lambda: blocks.Block(8, 16, 6, direction="up", taps=(1, 3, 3, 1), heads=2, scale=0.5**0.5),
    "adaptive": lambda: blocks.Block(8, 16, 6, direction="down", adaptive=True, heads=4),
    "small": lambda: unet.Block(8, 8, 6, 0.0, attend=True),
}


def in_steps(block, x, embedding):
    """The same block, every operation with a result of its own."""
    if isinstance(block, unet.Block):
        scale, shift = block.affine(embedding)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, block.norm2(block.conv1(F.silu(block.norm1(x)))), scale + 1)
        return block.attention(block.skip(x) + block.conv2(F.silu(h)))
    h = block.conv0(block.resample(F.silu(block.norm0(x))))
    shift = block.affine(embedding)[:, :, None, None]
    if block.adaptive:
        scale, shift = shift.chunk(2, 1)
        h = torch.addcmul(shift, block.norm1(h), scale + 1)
    else:
        h = block.norm1(h + shift)
    x = (block.skip(block.resample(x)) + block.conv1(F.silu(h))) * block.scale
    return x if block.attention is None else (x + block.attention(x)) * block.scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_place_has_the_same_bits_and_keeps_its_input(kind, layout):
    torch.manual_seed(0)
    block = KINDS[kind]().eval().to(memory_format=layout)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, embedding = torch.randn(3, 8, 8, 8).to(memory_format=layout), torch.randn(3, 6)
    before = x.clone()
    with torch.no_grad():
        expected, answer = in_steps(block, x, embedding), block(x, embedding)
    assert torch.equal(answer, expected) and answer.stride() == expected.stride() and torch.equal(x, before)
    for trained in (True, False):  # the weights, or x alone, as for a likelihood
        block.requires_grad_(trained)
        grads = []
        for forward in (block, lambda *given: in_steps(block, *given)):
            given = x.clone().requires_grad_()
            grads.append(torch.autograd.grad(forward(given, embedding).square().sum(), given)[0])
        assert torch.equal(*grads)


def test_without_gradients_the_activation_and_the_sums_take_no_memory():
    x, own = torch.randn(2, 4), torch.randn(2, 4)
    with torch.no_grad():
        assert blocks.silu(x) is x and blocks.added(x, own, 0.5) is own
    x.requires_grad_()
    assert blocks.silu(x * 1) is not x and blocks.added(x, x * 1, 0.5).requires_grad


def test_numbers_of_two_formats_are_added_in_the_longer_one():
    x, own = torch.randn(2, 4), torch.randn(2, 4).bfloat16()
    assert blocks.added(x, own).dtype == torch.float32
