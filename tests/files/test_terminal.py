"""What is printed to a terminal."""

from sae_unlearn.files.terminal import printable, side_by_side, table


def test_printable_shows_what_it_hides():
    assert printable("plain – text ü 漢") == "plain – text ü 漢"
    assert printable("a\x1b[1m\n\t\u202eb\x7f\u200b") == "a\\x1b[1m\\n\\t\\u202eb\\x7f\\u200b"
    assert printable("x" * 50, limit=10) == "x" * 7 + "..."


def test_tables_are_aligned():
    assert table([["", "n"], ["long title", "1"]], indent=1).splitlines() == [
        "              n",
        " ----------   -",
        " long title   1",
    ]
    assert side_by_side("a " * 30, "b", ("x", "y"), width=30).splitlines()[0] == "  x            | y"
