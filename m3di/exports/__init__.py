"""Runs for use elsewhere: as a folder for model hubs, as a MONAI bundle, as pretrained weights of nnU-Net.

`export` writes them; `load` gives the network of a run, or of a hub folder, back.
"""

from m3di.exports.export import FORMATS, Export, export
from m3di.exports.source import load

__all__ = ["FORMATS", "Export", "export", "load"]
