"""Dense targets written down literally: a loop over patches, each at its place, eight tokens around it."""

import math

import numpy as np

SIGNAL, MIN_SHARE = 0.05, 0.01


def place(plane, index, row, column, *, grid, cube_size):
    """Canonical coordinates (right, anterior, superior), 0 to 1, of the centre of a patch of a slice image."""
    down, across = (row + 0.5) / grid[0], (column + 0.5) / grid[1]  # from the image's top and left
    along = (index + 0.5) / cube_size
    return {
        0: (1 - across, 1 - down, along),  # axial: top is anterior, left is the patient's right
        1: (1 - across, along, 1 - down),  # coronal: top is superior, left is the patient's right
        2: (along, 1 - across, 1 - down),  # sagittal: top is superior, left is anterior
    }[plane]


def interpolate(tokens, where):
    """Trilinear interpolation in (c, d, h, w), cells sharing the cube evenly; constant beyond the outer centres."""
    total = np.zeros(tokens.shape[0])
    axes = []
    for count, coordinate in zip(tokens.shape[1:], where, strict=True):
        cell = min(max(coordinate * count - 0.5, 0), count - 1)
        low = min(math.floor(cell), count - 1)
        high = min(low + 1, count - 1)
        axes.append([(low, 1 - (cell - low)), (high, cell - low)])
    for x, weight_x in axes[0]:
        for y, weight_y in axes[1]:
            for z, weight_z in axes[2]:
                total += weight_x * weight_y * weight_z * tokens[:, x, y, z]
    return total


def shows_something(cube, plane, index, row, column, *, grid):
    """Whether enough voxels on which a patch lies are bright enough."""
    picture = image(cube, plane, index)
    (top, bottom), (left, right) = (
        (math.floor(k * n / count), math.ceil((k + 1) * n / count))
        for k, n, count in zip((row, column), picture.shape, grid, strict=True)
    )
    voxels = picture[top:bottom, left:right]
    return sum(value > SIGNAL for value in voxels.ravel()) / voxels.size >= MIN_SHARE


def image(cube, plane, index):
    """A slice of the cube as it is shown."""
    n = len(cube)
    picture = np.zeros((n, n))
    for row in range(n):
        for column in range(n):
            right, down = n - 1 - column, n - 1 - row
            picture[row, column] = {
                0: cube[right, down, index],
                1: cube[right, index, down],
                2: cube[index, right, down],
            }[plane]
    return picture


def losses(tokens, volumes, planes, slices, patches, *, grid, head):
    """Mean over volumes of the mean of 1 - cosine over patches that show something."""
    per_volume = []
    for b in range(len(tokens)):
        found = []
        for k in range(planes.shape[1]):
            for p in range(grid[0] * grid[1]):
                row, column = divmod(p, grid[1])
                plane, index = int(planes[b, k]), int(slices[b, k])
                if not shows_something(volumes[b], plane, index, row, column, grid=grid):
                    continue
                where = place(plane, index, row, column, grid=grid, cube_size=len(volumes[b]))
                predicted = head(interpolate(tokens[b], where))
                target = patches[b, k, p]
                found.append(1 - predicted @ target / (np.linalg.norm(predicted) * np.linalg.norm(target)))
        per_volume.append(np.mean(found) if found else 0.0)
    return np.mean(per_volume)
