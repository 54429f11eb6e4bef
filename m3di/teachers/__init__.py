"""Slices to captions to embeddings: the describer, the frozen 2D towers, their tuning, and the build's stage."""
