"""The captioners by name."""

from pathlib import Path

from m3di.captions.captioner import Captioner
from m3di.captions.describe import Describer
from m3di.captions.endpoint.captioner import EndpointCaptioner
from m3di.captions.tables.captioner import TableCaptioner
from m3di.config import Config
from stores import Store
from stores.errors import RefusedError


def captioner_of(config: Config, store: Store | None) -> Captioner:
    """The captioner of some settings; it does nothing yet.

    Args:
        config: All settings.
        store: Where answers that were paid for are kept; None when there is no store yet.

    Raises:
        RefusedError: E_CONFIG, when a setting that the captioner needs is missing.
    """
    if config.captions.captioner == "table":
        return table_captioner(config, store)
    describer = Describer(max_tokens=config.captions.max_tokens)
    if config.captions.captioner == "endpoint":
        return EndpointCaptioner(config.captions.endpoint, store, describer=describer)
    return describer


def table_captioner(config: Config, store: Store | None) -> TableCaptioner:
    """The captioner of `captions.file`.

    Raises:
        RefusedError: E_CONFIG, when that is not set.
    """
    if not config.captions.file:
        hint = "--captions FILE, or --set captions.file=FILE"
        raise RefusedError("E_CONFIG", "captions.captioner is table, but captions.file is not set", hint=hint)
    describer = Describer(max_tokens=config.captions.max_tokens)
    return TableCaptioner(
        Path(config.captions.file),
        store.records if store is not None else list,
        describer=describer,
        complete=config.captions.complete,
    )
