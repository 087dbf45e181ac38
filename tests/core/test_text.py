"""The quick test for ordinary texts agrees with the definitions of Python."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.core.text import PLAIN, PRINTABLE, UNUSUAL, kind_of_text


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", PLAIN),
        ("A “naïve” text – of two\nlines. 中文 가 😀", PLAIN),
        (" a\n", PLAIN),
        ("two  blanks", PRINTABLE),
        ("a\n\nb", PRINTABLE),
        ("a \nb", PRINTABLE),
        ("tab\there", UNUSUAL),
        ("a\u00a0b", UNUSUAL),
        ("soft\u00adhyphen", UNUSUAL),
        ("\x7f", UNUSUAL),
        ("line\u2028separator", UNUSUAL),
        ("\U000e0020 tag", UNUSUAL),
        ("half \ud83d", UNUSUAL),
    ],
)
def test_kinds(text, kind):
    assert kind_of_text(text) == kind


@given(st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x1FFFF) | st.sampled_from("  \n\t\x7f\u2003é")))
def test_any_text(text):
    flat = text.replace("\n", " ")
    expected = UNUSUAL if not flat.isprintable() else PRINTABLE if "  " in flat else PLAIN
    assert kind_of_text(text) == expected
