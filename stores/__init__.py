"""The feature store, free of torch: usable alone to inspect or verify a store. FORMAT.md is the normative format."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stores.store import Store

__all__ = ["Store"]


def __getattr__(name: str) -> Any:
    """Import the store on first use: zarr and lmdb take a third of a second that `m3di --help` need not pay."""
    if name == "Store":
        from stores.store import Store  # noqa: PLC0415

        return Store
    raise AttributeError(f"module 'stores' has no attribute {name!r}")
