"""Tables in plain text."""

from cosplace.cli.text_table import text_table


def test_columns_are_aligned_and_lines_have_no_spaces_at_the_end() -> None:
    rows = [("name", "photos", "note"), ("city", "1,000", ""), ("a long name", "7", "new")]
    assert text_table(rows, numbers=[1]) == [
        "name         photos  note",
        "city          1,000",
        "a long name       7  new",
    ]
    assert text_table([("one",)]) == ["one"]
