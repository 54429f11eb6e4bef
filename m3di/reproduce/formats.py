"""Findings as files: JSON for programs, CSV, Markdown and LaTeX."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, Final

from m3di.reproduce.findings import Block, Findings

LATEX: Final = str.maketrans(
    {
        "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    }
)  # fmt: skip


def to_json(findings: Findings) -> str:
    """Rows, notes, cost and the paper's numbers."""
    return json.dumps(findings.to_dict(), indent=1, allow_nan=False) + "\n"


def to_csv(findings: Findings) -> str:
    """A line a comparison; what has parts is spread over columns, named `part.name`."""
    rows = [_flat(row) for row in findings.to_dict()["rows"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(findings: Findings, figures: Sequence[str] = ()) -> str:
    """Title, figures, tables and notes.

    Args:
        findings: What to show.
        figures: File names of pictures beside it.
    """
    done, wanted = findings.num_cells
    parts = [
        f"# {findings.name}: {findings.title}",
        f"Scale `{findings.scale}`, {done} of {wanted} cells.",
        *(f"![{findings.title}]({name})" for name in figures),
        *(f"## {block.title}\n\n{_markdown_table(block)}" for block in findings.blocks),
        "## Notes\n\n" + "\n".join(f"- {_one_line(note)}" for note in findings.notes),
    ]
    return "\n\n".join(parts) + "\n"


def to_latex(findings: Findings) -> str:
    """One `table` a block, with the notes as comments; needs no package."""
    comments = "\n".join(f"% {_one_line(note)}" for note in findings.notes)
    return "\n\n".join([comments, *(_latex_table(findings, block) for block in findings.blocks)]) + "\n"


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = " ".join(str(one) for one in value) if isinstance(value, list) else value
    return found


def _markdown_table(block: Block) -> str:
    lines = [block.columns, tuple("---" for _ in block.columns), *block.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _latex_table(findings: Findings, block: Block) -> str:
    lines = [" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in (block.columns, *block.rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{f'{findings.title}: {block.title}'.translate(LATEX)}}}",
            rf"\begin{{tabular}}{{{'l' * len(block.columns)}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
