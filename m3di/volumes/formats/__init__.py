"""File formats of scans: one file a format reads its header strictly; `voxels` reads what any of them declares."""
