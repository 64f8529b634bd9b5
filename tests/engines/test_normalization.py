"""NFC in linear time: the same as `unicodedata`, whatever stands in a run of marks."""

import random
import unicodedata

import pytest
from growth import ratio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localqwen.engines.normalization import nfc

#: What a run can go wrong with: marks of many classes, marks that decompose, characters of class 0 that are or become
#: marks, starters that compose with starters, jamo, singletons, excluded compositions, several starters in one.
HARD = (
    "aeo 1<\u00e9\u1ebf\u01d5\u212b\u212a\u2126"
    "\u0340\u0341\u0343\u0344\u0300\u0301\u0302\u0308\u0304\u0323\u0327\u031b\u0328\u0345"
    "\u0360\u0315\u031a\u0338\u1dce\u0f71\u0f72\u0f73\u0f74\u0f75\u0f80\u0f81\u0f40\u0fb5\u0f69\u09c7\u09be\u09cb\u09d7"
    "\u0b47\u0b3e\u0b56\u0cc6\u0cc2\u0cd5\u0ccb"
    "\u0dd9\u0dcf\u0dca\u1100\u1161\u11a8\u11c2\uac00\uac01\ud7a3\u11a7\u1175\u1176"
    "\u3099\u304b\u30d5\u309a\u0958\ufb1d\ufb2c\u05b4\u05bc\u05c1\u2adc\U0001d15e\U0001d165\U0001d16e\U00011131\U00011127"
    "\U00011347\U0001133e\U000114b9\U000114ba\U0001e8d0\u034f\u200d\ufe0f\ud83d\u1025\u102e\u1b05\u1b35\u226e"
)
TEXTS = st.text(st.sampled_from(HARD), max_size=40) | st.text(max_size=20)


@settings(max_examples=1500, deadline=None)
@given(TEXTS, st.integers(0, 3))
@example("\u0301\u0323", 0)
@example("\u1100\u1161\u11a8\u0301\u0323", 0)
@example("\u09c7\u0301\u09be", 0)
@example("\u0f71\u0f73\u0f75\u0f72", 0)
def test_it_is_the_form_that_unicodedata_gives(text: str, longest_run: int) -> None:
    assert nfc(text, longest_run=longest_run) == unicodedata.normalize("NFC", text)


def test_every_character_between_marks_is_normalized_as_unicodedata_does() -> None:
    for code in range(0x110000):
        text = f"a\u0301\u0323{chr(code)}\u0345\u0301\u0323\u11a8\u09be"
        if unicodedata.decomposition(chr(code)) or unicodedata.combining(chr(code)):
            assert nfc(text, longest_run=0) == unicodedata.normalize("NFC", text), hex(code)


@pytest.mark.parametrize("before", ["", "a", "\uac00", "\u1100\u1161", "x\u09c7", "e\u0323"])
@pytest.mark.parametrize("behind", ["", "b", "\u09be", "\u1161", "\u0f73"])
def test_a_long_run_is_sorted_and_composed_whatever_stands_around_it(before: str, behind: str) -> None:
    drawn = random.Random(before + behind)
    for length in (31, 32, 33, 34, 300):
        run = "".join(drawn.choices("\u0301\u0302\u0323\u0327\u0345\u0f73\u0344\u0315", k=length))
        assert nfc(before + run + behind + run) == unicodedata.normalize("NFC", before + run + behind + run)


@pytest.mark.parametrize("marks", ["\u0345\u0323", "\u0f73", "\u0344\u0301\u0323", "\u1161", "e\u0301\u0323", "\u09be"])
def test_four_times_the_marks_take_about_four_times_as_long(marks: str) -> None:
    nfc("\u0301")  # the table of marks is made on first use
    assert ratio(nfc, "a" + marks * 5_000, "a" + marks * 20_000) < 8
