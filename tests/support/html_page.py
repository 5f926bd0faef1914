"""A page of HTML, parsed, whose elements are all closed in order."""

from html.parser import HTMLParser

import pytest


VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """A page whose elements are all closed in order.

    Attributes: elements, attributes; text, but for the style; titles, of the marks in drawings; tables, as rows of
    cells; hot, the marked tokens with their activations.
    """

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.attributes, self.text = [], [], [], ""
        self.titles, self.tables, self.hot = [], [], []
        self.feed(html)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "title":
            self.titles.append("")
        elif "hot" in dict(attributes).get("class", "").split():
            self.hot.append([dict(attributes)["title"], ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open, self.getpos())

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        elif self.open[-1:] == ["title"]:
            self.titles[-1] += data
        elif self.open[-2:] == ["p", "span"]:
            self.hot[-1][1] += data

    def handle_decl(self, declaration):
        assert declaration.lower() == "doctype html"

    def handle_pi(self, data):
        pytest.fail(data)

    def table(self, head):
        """The rows below the head that begins with these cells."""
        return next(rows[1:] for rows in self.tables if rows[0][: len(head)] == head)
