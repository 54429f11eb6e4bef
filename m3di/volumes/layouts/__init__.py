"""How datasets lie on disk: one file a layout, each giving its cases in a fixed order; `discover` picks one."""

from m3di.volumes.layouts.discovery import LAYOUTS, Dataset, discover, survey

__all__ = ["LAYOUTS", "Dataset", "discover", "survey"]
