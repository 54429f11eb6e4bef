"""Which axis is which does not depend on how far apart voxels are."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stores.geometry import CubeChain, Geometry

NEAREST = ["LR", "PA", "IS"]


def rotation(seed):
    """A random proper or improper rotation, (3, 3)."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.tuples(*[st.floats(0.2, 20)] * 3))
def test_the_orientation_of_an_oblique_scan_is_that_of_its_directions(seed, spacing):
    directions = rotation(seed)
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = (300, -400, 500)
    scan = Geometry((4, 5, 6), affine)
    plain = np.eye(4)
    plain[:3, :3] = directions
    assert scan.orientation == Geometry((4, 5, 6), plain).orientation
    assert CubeChain(scan, 8).axes == CubeChain(Geometry((4, 5, 6), plain), 8).axes
    np.testing.assert_allclose(scan.spacing_mm, spacing)
    assert {letter for pair in NEAREST for letter in pair if letter in scan.orientation} == set(scan.orientation)
    assert all(len(set(pair) & set(scan.orientation)) == 1 for pair in NEAREST), "each axis once"


def test_a_geometry_comes_back_from_json_in_floats():
    scan = Geometry((4, 5, 6), np.diag([1, 2, 3, 1]))
    back = Geometry.from_dict(json.loads(json.dumps(scan.to_dict())))
    assert back == scan
    assert back.affine.dtype == np.float64
