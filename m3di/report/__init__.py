"""Self-contained HTML pages: text, tables, pictures and curves in one file that needs nothing else.

What runs and stores have to show is in `m3di.report.pages`.
"""

from m3di.report.chart import Chart, Charts, Series
from m3di.report.page import (
    ColourKey,
    Commands,
    Facts,
    Legend,
    Link,
    Links,
    Matrix,
    Notice,
    Order,
    Page,
    Paragraph,
    Picture,
    Pictures,
    Section,
    Table,
)
from m3di.report.pictures import PALETTE, enlarge, montage, overlay
from m3di.report.write import write_page

__all__ = [
    "PALETTE",
    "Chart",
    "Charts",
    "ColourKey",
    "Commands",
    "Facts",
    "Legend",
    "Link",
    "Links",
    "Matrix",
    "Notice",
    "Order",
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
