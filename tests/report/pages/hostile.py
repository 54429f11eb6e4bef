"""Names that want to be markup, escapes or something else than they are."""

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"
TURNED = "gnp.\u202etxt\u2066"
ESCAPE = "\x1b[31mred\x1b]0;title\x07"
ALL = f"{MARKUP} {TURNED} {ESCAPE} \"'&{{{{ 7 * 7 }}}}"


def assert_harmless(html: str) -> None:
    """Names are there as text, and nothing that acts is."""
    assert html.count("<script") == html.count("<script>") <= 1, "our own script, or none"
    assert "onerror=alert" not in html.replace("&lt;img src=x onerror=alert(2)&gt;", "")
    for letter in ("\u202e", "\u2066", "\x1b", "\x07"):
        assert letter not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in html, "no template is made of a name"
