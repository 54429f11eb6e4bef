import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cli.output import plain
from m3di.captions.text import sanitise
from m3di.report import Page, Paragraph, Section, write_page

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"


@pytest.mark.parametrize(
    ("text", "clean", "changed"),
    [
        ("Axial CT slice.", "Axial CT slice.", False),
        ("  two\r\nlines\tand  blanks \x0b", "two lines and blanks", False),
        ("non\u00a0breaking\u2003and\u2028line", "non breaking and line", False),
        ("\x1b[31mred\x1b[0m liver", "red liver", True),
        ("\x1b]0;title\x07liver", "liver", True),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link", True),
        ("\x9b31mred", "red", True),
        ("unfinished \x1b]0;title", "unfinished 0;title", True),
        ("bell\x07 null\0 delete\x7f", "bell null delete", True),
        ("a\u202eevil\u202c b", "aevil b", True),
        ("li\u200bver\ufeff", "liver", True),
        ("half \ud83d pair", "half pair", True),
        ("private \ue000 and none \uffff", "private and none", True),
        ("cafe\u0301", "café", False),
        ("Ödem, 3 µm, <b>bold</b> & [red]", "Ödem, 3 µm, <b>bold</b> & [red]", False),
        ("\u200b\x1b[2J", "", True),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_goes_and_the_rest_stays(text, clean, changed):
    assert sanitise(text) == (clean, changed)


hostile = st.text(st.one_of(st.characters(), st.sampled_from("\x1b[]\x07\x9b\x9d\x9c;m\\ \n" + BIDI + ZERO_WIDTH)))


@given(hostile)
@example("\x1b\x1b[31mA")
@example("A\u200b\u0301")
def test_result_is_printable_normal_and_does_not_change_again(text):
    clean, changed = sanitise(text)
    assert clean.isprintable()
    assert clean == unicodedata.normalize("NFC", clean) == clean.strip()
    assert "  " not in clean
    assert sanitise(clean) == (clean, False)
    if not changed:
        assert "".join(clean.split()) == unicodedata.normalize("NFC", "".join(text.split()))


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_letters_numbers_and_signs_are_never_taken_out(text):
    assert not sanitise(text)[1]


def test_a_long_run_of_unfinished_escapes_takes_no_time():
    for piece in ("\x1b]", "\x9d", "\x1b[", "\x9b0"):
        assert len(sanitise(piece * 100_000)[0]) <= 200_000


@pytest.mark.parametrize("char", [*BIDI, *ZERO_WIDTH, "\x1b", "\x07", "\x9b", "\u2028", "\u00ad", "\ud800"])
def test_the_terminal_never_gets_what_steers_it_even_unsanitised(char):
    assert plain(f"a{char}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_a_page_shows_no_control_bidi_or_markup_of_a_text(tmp_path):
    text = "x\x1b[31m <script>alert(1)</script> " + BIDI
    page = Page("t", text, [Section(text, [Paragraph(text)])])
    html = write_page(page, tmp_path / "page.html").read_text()
    assert "<script>alert" not in html
    assert not any(char in html for char in BIDI + "\x1b")
