"""Literal resampling: for every target voxel, weigh every source voxel by a triangle of physical distance."""

import numpy as np


def resample_axis(values, spacing_mm, edge_mm, count):
    """Resample samples of one axis to `count` voxels over a centred field of `edge_mm`; outside the samples is 0."""
    extent = len(values) * spacing_mm
    target_mm = edge_mm / count
    result = []
    for target in range(count):
        centre = (target + 0.5) * target_mm - edge_mm / 2
        if abs(centre) > extent / 2 + 1e-9:
            result.append(0.0)
            continue
        total = weight_sum = 0.0
        for index, value in enumerate(values):
            distance = abs((index + 0.5) * spacing_mm - extent / 2 - centre) / max(spacing_mm, target_mm)
            weight = max(0.0, 1.0 - distance)
            total += weight * value
            weight_sum += weight
        result.append(total / weight_sum)
    return np.array(result)
