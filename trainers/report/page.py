"""Pieces of an HTML page that stands alone. Every text is escaped here, and nowhere else."""

import base64
import html
from collections.abc import Sequence
from typing import Any

GENERATOR = "fastcollect trainers.report"
"""By which a page of ours is known from others."""
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 1280px; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 2px solid #0072b2; padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
nav a { margin-right: 1rem; }
a { color: #005a8e; }
p { max-width: 75ch; }
.note { background: #fdf3e1; border-left: 4px solid #e69f00; padding: .5rem .8rem; max-width: 75ch; }
figure { margin: 1rem 0 1.6rem; }
figure img { max-width: 100%; height: auto; border: 1px solid #ddd; }
figcaption { color: #444; font-size: .9rem; max-width: 85ch; }
.scroll { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: #444; padding-top: .3rem; max-width: 85ch; }
th, td { padding: .22rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #999; vertical-align: bottom; white-space: normal; max-width: 8rem; }
th:first-child, td:first-child, th.text, td.text { text-align: left; }
tbody tr:hover { background: #f2f7fa; }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; font-size: .8rem; line-height: 1.35; }
details { margin: .3rem 0; }
summary { cursor: pointer; }
"""


def element(tag: str, text: Any, kind: str = "") -> str:
    """An element that shows a text. kind: its class."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<{tag}{attribute}>{html.escape(str(text))}</{tag}>\n"


def table(columns: str, rows: Sequence[Sequence[Any]], caption: str = "", texts: Sequence[str] = ()) -> str:
    """A table; nothing without rows.

    columns: "one|another". The first column and those named in ``texts`` are aligned left.
    """
    if not rows:
        return ""
    names = columns.split("|")

    def line(tag: str, cells: Sequence[Any]) -> str:
        pairs = zip(names, cells, strict=True)
        return f"<tr>{''.join(element(tag, cell, 'text' * (name in texts)) for name, cell in pairs)}</tr>\n"

    return (
        f'<div class="scroll"><table>{element("caption", caption)}<thead>{line("th", names)}</thead>\n'
        f"<tbody>{''.join(line('td', row) for row in rows)}</tbody></table></div>\n"
    )


def picture(content: bytes, kind: str, alternative: str, caption: str) -> str:
    """A picture inside the page. kind: "png" or "gif"."""
    data = base64.b64encode(content).decode("ascii")
    source = f'alt="{html.escape(alternative)}" src="data:image/{kind};base64,{data}"'
    return f"<figure><img {source}>{element('figcaption', caption)}</figure>\n"


def details(summary: str, text: str) -> str:
    """Text to be unfolded, as it stands."""
    return f"<details>{element('summary', summary)}{element('pre', text)}</details>\n"


def document(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The page. lead: its first pieces. sections: (anchor, title, pieces) of each."""
    contents = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>\n' for anchor, name, _ in sections)
    body = "".join(
        f'<section id="{anchor}">{element("h2", name)}{pieces}</section>\n'
        for anchor, name, pieces in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n{element("title", title)}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        f"<style>{_STYLE}</style></head>\n<body>\n{element('h1', title)}{lead}\n"
        f"<nav>{contents}</nav>\n{body}</body></html>\n"
    )
