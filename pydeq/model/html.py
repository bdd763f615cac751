"""Small tables for notebooks."""

import html
from collections.abc import Iterable

__all__ = ["html_table"]


def html_table(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return an HTML table of two columns, names and values, under a caption."""
    lines = [
        f"<tr><th style='text-align: left'>{html.escape(name)}</th>"
        f"<td style='text-align: right'>{html.escape(value)}</td></tr>"
        for name, value in rows
    ]
    return f"<table><caption>{html.escape(caption)}</caption>{''.join(lines)}</table>"
