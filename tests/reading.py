"""The tables of a page as a reader sees them: texts, with one plain space between words."""

from __future__ import annotations

from bs4 import BeautifulSoup


def cells(html: str) -> list[list[str]]:
    """The texts of each row, its heading first; of several tables one after the other."""
    return [
        [" ".join(cell.get_text(" ").split()) for cell in row.find_all(["th", "td"])]
        for row in BeautifulSoup(html, "html.parser").select("tbody tr")
    ]


def beside(html: str, heading: str) -> list[str]:
    """The texts in the row of this heading."""
    return next(rest for first, *rest in cells(html) if first == heading)


def by_title(table: str) -> list[dict[str, str]]:
    """Each row of one table, by the titles of its columns, without their units."""
    head = BeautifulSoup(table, "html.parser").select("thead th")
    titles = [str(next(iter(title.stripped_strings))) for title in head]
    return [dict(zip(titles, row, strict=True)) for row in cells(table)]
