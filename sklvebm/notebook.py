"""Tables of reports for notebooks."""

import html

_LABEL_WIDTH = 20  # columns of a line of a report before its text
_GOOD, _BAD = "#2e7d32", "#c62828"


def report_as_html(title: str, report: str) -> str:
    """Return a report as a table for notebooks.

    Parameters
    ----------
    title : str
        Heading.
    report : str
        Lines of a label, padded to 20 columns, and a text. Lines with the label "verdict" or
        "problem" stand out.

    Returns
    -------
    table : str
        HTML whose text keeps the colour of its surroundings, light or dark.
    """
    rows = []
    for line in report.splitlines():
        label, text = line[:_LABEL_WIDTH].strip(), line[_LABEL_WIDTH:]
        style = "padding:2px 8px;text-align:left;vertical-align:top;"
        if label in ("verdict", "problem"):
            is_bad = label == "problem" or text.startswith("check")
            style += f"border-left:4px solid {_BAD if is_bad else _GOOD};font-weight:bold"
        rows.append(
            f'<tr><th style="{style}">{html.escape(label)}</th>'
            f'<td style="padding:2px 8px;text-align:left">{html.escape(text)}</td></tr>'
        )
    head = f'<caption style="text-align:left;font-weight:bold">{html.escape(title)}</caption>'
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
