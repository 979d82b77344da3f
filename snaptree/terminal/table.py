"""Tables on the terminal: as wide as the screen, figures never cut, texts in their turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from snaptree.terminal.escaping import plain

_GAP = 2
"""Blanks between columns."""
_SHORTEST = 5
"""Columns of the screen down to which a text is cut."""


class Cut(Enum):
    """What of a text gives way."""

    NOTHING = auto()
    MIDDLE = auto()
    """Names differ at their ends."""
    END = auto()


@dataclass(slots=True)
class Column:
    """One column of a table. Figures, ages and states have no turn: they are never cut."""

    title: str
    short_title: str = ""
    """What stands in its place on a narrow screen."""
    turn: int = 0
    """When it gives way to a narrow screen: 1 is first, 0 is never."""
    cut: Cut = Cut.NOTHING
    right: bool = False
    stays: bool = False
    """It is cut, but never left out."""
    cells: list[Text] = field(default_factory=list)
    kept: int = 0
    """How much of the beginning of each cell is never cut: a tree's lines."""

    def add(self, text: str | Text) -> None:
        """Add the next row's cell: text of anybody's, or such as was made fit to be shown."""
        self.cells.append(Text(plain(text)) if isinstance(text, str) else text)

    @property
    def is_empty(self) -> bool:
        """Whether no row has anything here."""
        return not any(cell.plain for cell in self.cells)

    @property
    def width(self) -> int:
        """Columns of the screen that it takes."""
        return max(cell_len(self.title), *(cell.cell_len for cell in self.cells), 0)

    @property
    def least(self) -> int:
        """The width down to which it can be cut."""
        if self.cut is Cut.NOTHING:
            text = max((cell.cell_len for cell in self.cells), default=0)
        else:
            text = self.kept + _SHORTEST
        return min(self.width, max(cell_len(self.short_title or self.title), text))

    def narrow(self, width: int) -> None:
        """Cut its title and cells to a width that is not less than its `least`."""
        if cell_len(self.title) > width:
            self.title = self.short_title
        for index, cell in enumerate(self.cells):
            if cell.cell_len <= width:
                continue
            if self.cut is Cut.END:
                cell.truncate(width, overflow="ellipsis")
            else:
                self.cells[index] = _without_middle(cell, self.kept + (width - self.kept) // 2, width)


def add_row(columns: Sequence[Column], *cells: str | Text) -> None:
    """Add a row: a cell for each column."""
    for column, cell in zip(columns, cells, strict=True):
        column.add(cell)


def _without_middle(text: Text, head: int, width: int) -> Text:
    """A text cut to a width: as much of its beginning as is said, and of its end what there is room for."""
    start, end = len(text), len(text)
    while cell_len(text.plain[:start]) > head:
        start -= 1
    while cell_len(text.plain[end - 1 :]) < width - head:
        end -= 1
    return Text.assemble(text[:start], "…", text[end:])


def print_table(out: Console, columns: Sequence[Column]) -> None:
    """Print a table as wide as the screen, wider only if what must stay whole needs it."""
    shown = _those_that_fit(columns, out.width)
    table = Table(box=None, pad_edge=False, header_style="dim", width=_width_of(shown))
    for column in shown:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    if out.is_terminal:
        out.print(table)
        return
    # A pipe gets no blanks that fill the last column.
    with out.capture() as capture:
        out.print(table)
    out.file.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _those_that_fit(columns: Sequence[Column], room: int) -> list[Column]:
    """The columns that are shown in so much room, cut or left out in their turn."""
    shown = list(columns)
    widths = [column.width for column in columns]
    by_turn = sorted((column for column in columns if column.turn), key=lambda column: column.turn)

    def slack() -> int:
        return room - sum(widths) - _GAP * (len(shown) - 1)

    for column in by_turn:
        place = shown.index(column)
        widths[place] = max(column.least, min(widths[place], widths[place] + slack()))
        if slack() < 0 and not column.stays:
            del shown[place], widths[place]
    for column in reversed(by_turn):  # what left last may have left more room than was missing
        if column in shown and slack() > 0:
            place = shown.index(column)
            widths[place] = min(column.width, widths[place] + slack())
    for column, width in zip(shown, widths, strict=True):
        if width < column.width:
            column.narrow(width)
    return shown


def _width_of(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)
