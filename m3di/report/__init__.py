"""Self-contained HTML pages: text, tables, pictures and curves in one file that needs nothing else."""

from m3di.report.chart import Chart, Series
from m3di.report.page import ColourKey, Commands, Facts, Page, Paragraph, Picture, Pictures, Section, Table
from m3di.report.pictures import PALETTE, enlarge, montage, overlay
from m3di.report.write import write_page

__all__ = [
    "PALETTE",
    "Chart",
    "ColourKey",
    "Commands",
    "Facts",
    "Page",
    "Paragraph",
    "Picture",
    "Pictures",
    "Section",
    "Series",
    "Table",
    "enlarge",
    "montage",
    "overlay",
    "write_page",
]
