"""The feature store, free of torch: usable alone to inspect or verify a store. FORMAT.md is the normative format."""

from stores.store import Store

__all__ = ["Store"]
