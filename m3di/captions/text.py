"""Text that others wrote, made safe to keep and to show: nothing invisible, nothing that steers a terminal."""

import re
import unicodedata
from typing import Final

# ECMA-48: control sequences, then strings up to their end, then the other escapes. A string that never ends loses
# its opening alone.
_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x1b\x07\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)


def sanitise(text: str) -> tuple[str, bool]:
    """Make a text printable: one line of NFC, without control, format and zero-width characters.

    Line breaks and tabs become blanks, blanks in a row become one. Markup is left as it is: who shows a text escapes
    it. Sanitising twice changes nothing more.

    Args:
        text: As it was written.

    Returns:
        The text, and whether anything but blanks was taken out: terminal escapes, control characters, bidirectional
        controls, zero-width and private characters, or halves of surrogate pairs.
    """
    if text.isprintable():
        kept = text
    else:
        kept = "".join(char for char in _ESCAPES.sub("", text) if char.isprintable() or char.isspace())
    return " ".join(unicodedata.normalize("NFC", kept).split()), len(kept) != len(text)
