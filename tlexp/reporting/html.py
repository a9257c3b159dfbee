"""Tables and figures as HTML, as notebooks show them."""

import io

import pandas as pd
from matplotlib.figure import Figure

from tlexp.reporting.fonts import make_readable


def table_html(table: pd.DataFrame) -> str:
    """Returns a table of numbers or texts; cells without a value are empty."""
    html: str = table.to_html(na_rep="", float_format="{:.4f}".format, border=0)
    return html


def figure_html(figure: Figure) -> str:
    """Returns a figure as SVG."""
    stream = io.StringIO()
    make_readable(figure)
    figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index("<svg") :]
