"""m3di pretrains 3D medical image encoders with frozen 2D vision-language models (the Med3DInsight method)."""
