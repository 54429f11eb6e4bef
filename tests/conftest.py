"""No test may reach a model hub, as huggingface_hub reads when it is imported, and none fails of a busy machine."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

settings.register_profile("m3di", deadline=None)
settings.load_profile("m3di")
