"""3D encoders, the Plane-Slice-Aware Transformer and segmentation networks."""
