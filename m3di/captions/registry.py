"""The captioners by name."""

from m3di.captions.captioner import Captioner
from m3di.captions.describe import Describer
from m3di.config import Config
from stores import Store


def captioner_of(config: Config, store: Store | None) -> Captioner:
    """The captioner of some settings; it does nothing yet.

    Args:
        config: All settings.
        store: Where answers that were paid for are kept; None when there is no store yet.

    Raises:
        RefusedError: E_CONFIG, when a setting that the captioner needs is missing.
    """
    return Describer()
