"""No test may reach a model hub, as huggingface_hub reads when it is imported, and none fails of a busy machine."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # `pytest -n`: the cores are divided among the processes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))

from hypothesis import settings

settings.register_profile("m3di", deadline=None)
settings.load_profile("m3di")
