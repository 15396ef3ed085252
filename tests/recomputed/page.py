"""The page of a report as a tree, and what of it holds numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})


@dataclass
class Node:
    """An element with what it contains, elements and text in order."""

    tag: str
    attributes: dict[str, str]
    content: list[Node | str] = field(default_factory=list)

    def all(self, tag: str = "", kind: str = "") -> Iterator[Node]:
        """Yields the elements within of a tag and a class, in the order of the page."""
        for child in self.content:
            if isinstance(child, Node):
                if tag in ("", child.tag) and (not kind or kind in child.attributes.get("class", "").split()):
                    yield child
                yield from child.all(tag, kind)

    def one(self, tag: str = "", kind: str = "") -> Node:
        """Returns the first of `all`, or an empty element."""
        return next(self.all(tag, kind), Node("", {}))

    def named(self, name: str) -> Node:
        """Returns the element of that id, or an empty one."""
        return next((node for node in self.all() if node.attributes.get("id") == name), Node("", {}))

    def text(self, without: str = "") -> str:
        """Returns its words; those of elements of the class `without` left out."""
        words = [
            child if isinstance(child, str) else child.text(without)
            for child in self.content
            if isinstance(child, str) or not without or without not in child.attributes.get("class", "").split()
        ]
        return " ".join(" ".join(words).split())


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].content.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        while len(self.open) > 1:
            if self.open.pop().tag == tag:
                return

    def handle_data(self, data: str) -> None:
        content = self.open[-1].content
        if content and isinstance(content[-1], str):
            content[-1] += data
        else:
            content.append(data)


def parse(text: str) -> Node:
    builder = _Builder()
    builder.feed(text)
    builder.close()
    return builder.root


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the smaller line below it, and what it is sorted by where that is written down."""

    text: str
    under: str
    value: str | None

    @property
    def number(self) -> float | None:
        return float(self.value) if self.value else None


@dataclass(frozen=True)
class Table:
    """A table: headings, and each row's cells by heading."""

    columns: list[str]
    rows: list[dict[str, Cell]]


def table_of(node: Node) -> Table:
    """Returns the table; rows that hold remarks only are left out."""
    columns = [heading.text() for heading in node.one("thead").all("th")]
    rows = []
    for body in node.all("tbody"):
        for row in body.all("tr"):
            if "problems" not in row.attributes.get("class", ""):
                cells = [one for one in row.content if isinstance(one, Node) and one.tag in ("td", "th")]
                rows.append(dict(zip(columns, map(_cell, cells), strict=True)))
    return Table(columns, rows)


def _cell(node: Node) -> Cell:
    if node.tag == "th" and any(node.all("span", "name")):
        return Cell(node.one("span", "name").text(), node.one("span", "settings").text(), None)
    return Cell(node.text(without="under"), node.one("span", "under").text(), node.attributes.get("data-value"))


@dataclass(frozen=True)
class Figure:
    """A figure: its key, title, words, numbers as a table, and the numbers that are drawn."""

    key: str
    title: str
    words: str
    caption: str
    table: Table
    drawn: list[list[dict[str, Any]]]


def figures_in(node: Node) -> list[Figure]:
    found = []
    for figure in node.all("figure"):
        key = figure.attributes["id"].removeprefix("figure-")
        spec = json.loads("".join(map(str, figure.one("script").content)))
        title = next(child.text() for child in figure.all() if child.tag in ("h3", "h4"))
        words = figure.one("div", "chart").attributes["aria-label"]
        table = table_of(figure.one("table"))
        found.append(
            Figure(key, title, words, figure.one("figcaption").text(), table, list(spec.get("datasets", {}).values()))
        )
    return found
