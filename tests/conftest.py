"""No test may reach a model hub: huggingface_hub reads this when it is imported, by whichever test comes first."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
