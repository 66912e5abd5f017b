"""Numbers and tables as text: a dash for undefined values, never NaN."""

import math


def from_to(fewest, most):
    """Write a range of counts; one number if both are equal."""
    return str(most) if fewest == most else f"{fewest} to {most}"


def number(value, form):
    """Write a number in a format such as "+.3f"; a dash for None and NaN."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def interval(low, high, form):
    """Write an interval; a dash if it is undefined."""
    return "-" if "-" in (number(low, form), number(high, form)) else f"{low:{form}} to {high:{form}}"


def p_value(p):
    """Write a p value; those below 0.001 are not distinguished."""
    return "< 0.001" if p is not None and p < 0.001 else number(p, ".3f")


def print_table(table):
    """Print a `tables.Table` on the terminal, or in full width to a file or a pipe."""
    from rich.console import Console
    from rich.markup import escape  # a unit in brackets is not markup
    from rich.table import Table

    console = Console()
    # Files and pipes have no width limit, and a truncated table would be useless.
    console = console if console.is_terminal else Console(width=240)
    titles = {"title": escape(table.title), "caption": escape(table.caption)}
    rendered = Table(*map(escape, table.text.columns), **titles, title_justify="left", caption_justify="left")
    for row in table.text.to_numpy().tolist():
        rendered.add_row(*map(escape, row))
    console.print(rendered)
