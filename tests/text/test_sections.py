"""Sections: what a long text is cut into."""

from hypothesis import given
from hypothesis import strategies as st

from pellucid.text.sections import SECTION, sections

# long texts with every kind of place to cut at, and stretches without any
pieces = st.lists(
    st.sampled_from(["word " * 300, "line\n" * 500, "para\n\n", "x" * 5000, "字" * 3000, "。", "\r\n", "\u3000", "😀"]),
    max_size=30,
)


def chunked(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@given(pieces.map("".join), st.integers(1, 20_000))
def test_sections_are_the_text_and_do_not_depend_on_chunks(text, size):
    cut = list(sections([text]))
    assert "".join(cut) == text
    assert list(sections(chunked(text, size))) == cut
    assert all(0 < len(section) <= SECTION for section in cut)
    assert all(len(section) >= SECTION // 2 for section in cut[:-1])


def test_a_section_ends_at_the_best_place_there_is():
    half = SECTION // 2

    def first(middle: str) -> str:
        return next(sections(["a" * half + middle + "b" * SECTION]))

    assert first("x y\nz\n\nw\nv") == "a" * half + "x y\nz\n\n"
    assert first("x y\nz w") == "a" * half + "x y\n"
    assert first("x y") == "a" * half + "x"  # the space stays with its word
    assert first("好。不") == "a" * half + "好。"
    assert first("xyz") == "a" * half + "xyz" + "b" * (half - 3)


def test_a_text_of_one_section_is_left_whole():
    assert list(sections(["a\n\n" * 2730])) == ["a\n\n" * 2730]
    assert list(sections([])) == []
