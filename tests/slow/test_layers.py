"""cpu_convolutions.py at every kernel size and kind of shape; the convolutions of all methods."""

import pytest
import test_layers

from facedepth_jax.models import cpu_convolutions

KERNELS = (2, 3, 4, 5, 6, 7)
# As in tests/test_layers.py: the shapes of the nets' layers, then what a user may bring, then enough channels for the
# other ways to compute it.
DOWN = [
    (5, (96, 96), 1, 3),
    (5, (48, 48), 2, 3),
    (5, (24, 24), 2, 3),
    (5, (32, 48), 2, 3),
    (5, (4, 30), 2, 1),
    (4, (64, 32), 2, 3),
    (3, (16, 20), 2, 3),
    *((k, size, 17, o) for k in KERNELS for size, o in (((6, 10), 3), ((4, 6), 12))),
    *((k, (4, 6), 1, 3) for k in KERNELS),
]
UP = [
    (5, (12, 12), 3, 2),
    (5, (24, 24), 2, 3),
    (5, (48, 48), 2, 1),
    (5, (17, 5), 3, 2),
    (4, (32, 32), 2, 1),
    (4, (8, 16), 3, 2),
    (4, (1, 1), 2, 3),
    (6, (12, 12), 3, 2),
    (6, (48, 48), 2, 1),
    (3, (8, 7), 3, 2),
    (2, (7, 3), 2, 3),
    (7, (8, 7), 3, 2),
    (7, (3, 7), 3, 2),
    *((k, (3, 5), 2, 17) for k in KERNELS),
]


@pytest.mark.parametrize("shape", DOWN)
def test_conv_s2_is_xlas(shape):
    test_layers.test_conv_s2_is_xlas(*shape)


@pytest.mark.parametrize("shape", UP)
def test_conv_transpose_s2_is_xlas(shape):
    test_layers.test_conv_transpose_s2_is_xlas(*shape)


def test_conv5s1_to_one_is_xlas():
    test_layers.test_conv5s1_to_one_is_xlas((96, 96), 3)


def test_every_way_up_is_taken_by_every_kernel():
    down = test_layers.ways_taken(cpu_convolutions.conv_s2, DOWN)
    up = test_layers.ways_taken(cpu_convolutions.conv_transpose_s2, UP)
    phases, at_once, products = test_layers.WAYS
    assert down >= {(way, k) for way in (phases, products) for k in KERNELS}
    assert up >= {(way, k) for way in (phases, at_once) for k in KERNELS}


@pytest.mark.parametrize("method", ["cui", "pix2pix"])
def test_every_convolution_of_the_nets_is_flaxs(method):
    test_layers.check_convolutions_of(method)
