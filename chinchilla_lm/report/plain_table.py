"""Tables of the page that have no more to them than heads and rows of text."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_lm.report import packed
from chinchilla_lm.report.drawing import text_of
from chinchilla_lm.report.numbers import Report


def packed_tables(report: Report) -> str:
    """What each part is packed in: by format, and folded away one by one."""
    if not packed.parts(report):
        return ""
    return f"""<h3>What it is packed in</h3>
<p class="lead">{text_of(packed.packed_words(report))}</p>
{plain_table(packed.FORMATS_HEADS, packed.format_rows(report))}
<details><summary>Each part</summary>{plain_table(packed.PARTS_HEADS, packed.part_rows(report))}</details>"""


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; the first column names its rows."""
    top = "".join(f'<th scope="col">{text_of(head)}</th>' for head in heads)
    lines = []
    for first, *rest in rows:
        lines.append(f'<tr><th scope="row">{text_of(first)}</th>{"".join(f"<td>{text_of(x)}</td>" for x in rest)}</tr>')
    body = "".join(lines)
    return f'<div class="others scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
