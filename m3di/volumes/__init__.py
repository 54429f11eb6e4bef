"""Scans to cubes and slice images: cases, layouts, readers, preprocessing, rendering. Free of torch."""
