"""Tables as aligned columns, and as one entry a row where the columns do not fit."""

from collections.abc import Sequence

from erniechat.ui.markdown.layout import Line, Run, line_width, split_lines, wrap

GAP = 2
NARROWEST = 6  # columns that a cell with long text needs to be read

Cell = list[Run]
Row = Sequence[Cell]


def table_lines(rows: Sequence[Row], aligns: Sequence[str], width: int, rule: Run) -> list[Line]:
    """The lines of a table.

    Args:
        rows: Its cells; the first row is the header.
        aligns: left, right, center or nothing, for each column.
        width: Columns of the terminal.
        rule: The sign and the style of the line under the header.
    """
    columns = len(aligns)
    rows = [[*row, *([] for _ in range(columns - len(row)))][:columns] for row in rows]
    widths = _fit([_natural(rows, index) for index in range(columns)], width)
    if widths is None:
        return _as_entries(rows, width)
    sign, style = rule
    under: Line = []
    for index, num_columns in enumerate(widths):
        under.append((" " * GAP if index else "", ""))
        under.append((sign * num_columns, style))
    header, *body = [_row(row, widths, aligns) for row in rows]
    return [*header, under, *(line for row in _spaced(body) for line in row)]


def _natural(rows: Sequence[Row], index: int) -> int:
    """Columns that the widest cell of a column takes unbroken."""
    lines = [line for row in rows for line in split_lines(row[index])]
    return max(1, *map(line_width, lines))


def _fit(natural: list[int], width: int) -> list[int] | None:
    """Widths that fit side by side, None if some would be too narrow; the widest give first."""
    room = width - GAP * (len(natural) - 1)
    widths = list(natural)
    while sum(widths) > room:
        widest = max(widths)
        second = max((num for num in widths if num < widest), default=1)
        num_widest = widths.count(widest)
        excess = sum(widths) - room
        lower = max(second, widest - -(-excess // num_widest), 1)
        if lower < min(NARROWEST, widest):
            return None
        widths = [min(num, lower) for num in widths]
    return widths


def _row(row: Row, widths: Sequence[int], aligns: Sequence[str]) -> list[Line]:
    """The lines of one row."""
    cells = [
        [part for line in split_lines(cell) for part in wrap(line, num_columns)]
        for cell, num_columns in zip(row, widths, strict=True)
    ]
    lines: list[Line] = []
    for number in range(max(map(len, cells))):
        line: Line = []
        for index, cell in enumerate(cells):
            line.append((" " * GAP if index else "", ""))
            text = cell[number] if number < len(cell) else []
            line += _aligned(text, widths[index], aligns[index])
        lines.append(line)
    return lines


def _aligned(text: Line, num_columns: int, align: str) -> Line:
    blanks = num_columns - line_width(text)
    before = {"right": blanks, "center": blanks // 2}.get(align, 0)
    return [(" " * before, ""), *text, (" " * (blanks - before), "")]


def _spaced(rows: Sequence[list[Line]]) -> list[list[Line]]:
    """Rows of several lines are set apart by a blank line."""
    if all(len(row) == 1 for row in rows):
        return list(rows)
    return [[*([[]] if number else []), *row] for number, row in enumerate(rows)]


def _as_entries(rows: Sequence[Row], width: int) -> list[Line]:
    """Each row as lines of ``header: cell``, rows a blank line apart."""
    header, *body = rows
    lines: list[Line] = []
    for row in body:
        if lines:
            lines.append([])
        for name, cell in zip(header, row, strict=True):
            runs = [*name, (": ", ""), *cell] if name else list(cell)
            flat = [(text.replace("\n", " "), sgr) for text, sgr in runs]
            lines += wrap(flat, width)
    return lines or [part for name in header for part in wrap(name, width)]
