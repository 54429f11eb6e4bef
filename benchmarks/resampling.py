"""A 512 x 512 x 200 CT of 0.7 x 0.7 x 1.5 mm to the 128^3 cube: m3di against MONAI's chain and SimpleITK.

python benchmarks/resampling.py [--threads N]

The scan is analytic (ellipsoids with borders of about 2 mm) with noise of 30 HU, so that the truth is known: each
cube voxel's mean over 3 x 3 x 3 points, without the noise. Error is the root mean square over the cube, of
intensities in [0, 1]; shift is how far a blob's centre of mass lies from its place, in voxels of the cube. Times are
the best of three.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Resize, ScaleIntensityRange, Spacing, SpatialPad
from threadpoolctl import threadpool_limits

from m3di.volumes.preprocess import make_cube
from m3di.volumes.readers import Volume
from stores.geometry import CubeChain, Geometry
from stores.recipe import Recipe

SHAPE, SPACING_MM, SIZE = (512, 512, 200), (0.7, 0.7, 1.5), 128
WINDOW_HU, NOISE_HU = (-1000.0, 1000.0), 30.0
BLOB_MM, BLOB_WIDTH_MM = np.array([31.7, -22.3, 40.9]), 12.0
# centre and radii in mm, HU above what lies around
ELLIPSOIDS = (
    ((0, 0, 0), (150, 110, 140), 1000.0), ((-60, 20, 30), (50, 60, 45), 120.0), ((70, 10, 20), (30, 40, 50), -600.0),
    ((5, -60, 0), (18, 18, 130), 700.0), ((40, -30, -60), (9, 14, 11), 250.0), ((-20, 50, -40), (4, 60, 4), 400.0),
)  # fmt: skip
Floats = npt.NDArray[np.floating]


def phantom(points_mm: list[Floats]) -> npt.NDArray[np.float32]:
    """HU at the points of a grid, given as three broadcastable coordinates."""
    values = np.full(np.broadcast_shapes(*(p.shape for p in points_mm)), -1000.0, np.float32)
    for centre, radii, contrast in ELLIPSOIDS:
        inside = sum(((p - c) / r) ** 2 for p, c, r in zip(points_mm, centre, radii, strict=True))
        depth_mm = (min(radii) * (1 - np.sqrt(inside))).astype(np.float32)
        values += np.float32(contrast) / (1 + np.exp(-depth_mm.clip(-50, 50)))
    return values


def blob(points_mm: list[Floats]) -> npt.NDArray[np.float32]:
    """A Gaussian, alone, whose place is looked for."""
    squared = sum((p - c) ** 2 for p, c in zip(points_mm, BLOB_MM, strict=True))
    return (-1000 + 2000 * np.exp(-squared / (2 * BLOB_WIDTH_MM**2))).astype(np.float32)


def axes_mm(counts: tuple[int, ...], step_mm: tuple[float, ...], start_mm: npt.NDArray[np.floating]) -> list[Floats]:
    """Coordinates of a grid's points along three axes, each shaped to broadcast."""
    lines = [start + step * np.arange(n) for n, step, start in zip(counts, step_mm, start_mm, strict=True)]
    return [line.reshape([-1 if axis == a else 1 for a in range(3)]) for axis, line in enumerate(lines)]


def truth(field: Callable[[list[Floats]], npt.NDArray[np.float32]], chain: CubeChain) -> npt.NDArray[np.float32]:
    """Mean of a field over each voxel of the cube, in [0, 1]; 0 outside the scan."""
    step = chain.voxel_mm / 3
    start = chain.cube.affine[:3, 3] - step
    fine = field(axes_mm((3 * SIZE,) * 3, (step,) * 3, start))
    mean = fine.reshape(SIZE, 3, SIZE, 3, SIZE, 3).mean(axis=(1, 3, 5))
    inside = np.zeros_like(mean)
    inside[tuple(slice(*bounds) for bounds in chain.inside)] = 1
    return np.clip((mean - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]), 0, 1) * inside


def with_m3di(resampling: str) -> Callable[[npt.NDArray[np.int16], Geometry], npt.NDArray[np.float32]]:
    """Our way, direct or in the paper's two steps."""
    recipe = Recipe(cube_size=SIZE, resampling=resampling, ct_window_hu=WINDOW_HU)  # type: ignore[arg-type]
    return lambda data, geometry: make_cube(Volume(data, geometry, "CT"), recipe).data


def with_monai(data: npt.NDArray[np.int16], geometry: Geometry) -> npt.NDArray[np.float32]:
    """Spacing, pad, resize, as MONAI's tutorials chain them."""
    extent = max(round(n * s) for n, s in zip(SHAPE, SPACING_MM, strict=True))
    chain = Compose([
        ScaleIntensityRange(*WINDOW_HU, 0.0, 1.0, clip=True),
        Spacing(pixdim=(1.0, 1.0, 1.0), mode="bilinear", padding_mode="zeros"),
        SpatialPad((extent,) * 3),
        Resize((SIZE,) * 3, mode="trilinear", anti_aliasing=True),
    ])  # fmt: skip
    image = MetaTensor(torch.from_numpy(data.astype(np.float32))[None], affine=torch.from_numpy(geometry.affine))
    return np.asarray(chain(image)[0], np.float32)


def with_sitk(data: npt.NDArray[np.int16], geometry: Geometry) -> npt.NDArray[np.float32]:
    """One linear resampling, without anti-aliasing; the grid's axes are the world's, so no direction is needed."""
    chain = CubeChain(geometry, SIZE)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(SPACING_MM)
    image.SetOrigin(geometry.affine[:3, 3].tolist())
    cube = sitk.Resample(
        image, (SIZE,) * 3, sitk.Transform(), sitk.sitkLinear, chain.cube.affine[:3, 3].tolist(),
        (chain.voxel_mm,) * 3, np.eye(3).ravel().tolist(), WINDOW_HU[0], sitk.sitkFloat32,
    )  # fmt: skip
    values = sitk.GetArrayFromImage(cube).T
    return np.clip((values - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]), 0, 1)


def main(threads: int) -> None:
    """Print time, ratio, error and shift of each route."""
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -(np.array(SHAPE) - 1) * SPACING_MM / 2
    geometry = Geometry(SHAPE, affine)
    chain = CubeChain(geometry, SIZE)
    points = axes_mm(SHAPE, SPACING_MM, affine[:3, 3])
    noise = np.random.default_rng(0).normal(0, NOISE_HU, SHAPE)
    fields = {phantom: phantom(points) + noise, blob: blob(points)}
    scans = {field: np.asfortranarray(np.rint(values), np.int16) for field, values in fields.items()}  # as readers do
    expected = truth(phantom, chain)
    routes = {
        "m3di": with_m3di("direct"),
        "m3di two_step": with_m3di("two_step"),
        "SimpleITK, one linear": with_sitk,
        "MONAI Spacing + pad + Resize": with_monai,
    }
    print(f"{threads} thread{'s' * (threads > 1)}")
    print(f"{'route':30} {'seconds':>8} {'ratio':>6} {'error':>7} {'shift':>6}")
    fastest = 0.0
    for name, route in routes.items():
        with threadpool_limits(threads):
            seconds = min(_timed(route, scans[phantom], geometry) for _ in range(3))
            cube, spot = route(scans[phantom], geometry), route(scans[blob], geometry)
        fastest = fastest or seconds
        error = float(np.sqrt(((cube - expected) ** 2).mean()))
        points = axes_mm((SIZE,) * 3, (chain.voxel_mm,) * 3, chain.cube.affine[:3, 3])
        centre = np.array([float((spot * p).sum() / spot.sum()) for p in points])
        shift = float(np.abs(centre - BLOB_MM).max()) / chain.voxel_mm
        print(f"{name:30} {seconds:8.3f} {seconds / fastest:6.1f} {error:7.4f} {shift:6.3f}")


def _timed(route: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    route(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args().threads)
