"""A page of sections, such as a data card, as HTML and as Markdown.

All content may be untrusted text, so all of it is escaped: HTML in a document is displayed, never executed.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType

from bert_pipeline.core.printable import fenced, plain
from bert_pipeline.core.tables import markdown_table

Samples = Sequence[tuple[str, list[str]]]
"""(id, sentences) of documents."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """\
body { max-width: 68rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222 }
h1 { font-size: 1.7rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
.glance { display: flex; flex-wrap: wrap; gap: .7rem }
.glance div { flex: 1; white-space: nowrap; padding: .7rem 1rem; border-radius: .5rem; background: #f2f6fa;
    color: #555; font-size: .85rem }
.glance b { display: block; font-size: 1.3rem; color: #222 }
table { border-collapse: collapse; min-width: 50% }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #eee; text-align: left; overflow-wrap: anywhere }
th { color: #555; font-weight: 600 }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.bar { display: inline-block; width: 8rem; height: .7rem; margin-left: .6rem; background: #eee }
.bar i { display: block; height: 100%; background: #1f77b4 }
figure { display: inline-block; margin: .5rem 1rem .5rem 0 } figcaption { color: #555; font-size: .85rem }
img { max-width: 100% } summary { cursor: pointer; font-weight: 600 } details { margin: .5rem 0 }
summary, li { overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class PageSection:
    """A float in a table is a share; the HTML page also draws it as a bar."""

    title: str
    text: str = ""
    head: tuple[str, ...] = ()
    rows: Sequence[tuple[str | int | float, ...]] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """Caption -> PNG."""
    points: Sequence[str] = ()
    """Items of a list below the text."""


def html(title: str, glance: Mapping[str, str], sections: Sequence[PageSection], samples: Samples = ()) -> str:
    """A self-contained page without scripts or external resources."""
    figures = "".join(f"<div><b>{escape(figure)}</b>{escape(what)}</div>" for what, figure in glance.items())
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<div class="glance">{figures}</div>
{"".join(map(_html_section, sections))}{_html_samples(samples)}</body>
</html>
"""


def _html_section(section: PageSection) -> str:
    drawn = "".join(
        f'<figure><img src="{_embedded(png)}" alt="{escape(what)}"><figcaption>{escape(what)}</figcaption></figure>\n'
        for what, png in section.pictures.items()
    )
    text = f"<p>{escape(section.text)}</p>\n" if section.text or not section.points else ""
    points = "".join(f"<li>{escape(point)}</li>\n" for point in section.points)
    listed = f"<ul>\n{points}</ul>\n" if points else ""
    return f"<h2>{escape(section.title)}</h2>\n{text}{listed}{_html_table(section)}{drawn}"


def _html_table(section: PageSection) -> str:
    if not section.rows:
        return ""
    kinds = ["" if isinstance(cell, str) else ' class="number"' for cell in section.rows[0]]
    lines = ["".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, section.head, strict=True))]
    longest = max([cell for row in section.rows for cell in row if isinstance(cell, float)], default=0.0)
    for row in section.rows:
        cells = zip(kinds, row, strict=True)
        lines.append("".join(f"<td{kind}>{escape(_shown(cell))}{_bar(cell, longest)}</td>" for kind, cell in cells))
    return "<table>\n" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>\n"


def _bar(cell: str | int | float, longest: float) -> str:
    if not isinstance(cell, float) or not longest:
        return ""
    return f'<span class="bar"><i style="width: {cell / longest:.1%}"></i></span>'


def _html_samples(samples: Samples) -> str:
    if not samples:
        return ""
    lines = ["<h2>Samples</h2>\n<p>Documents as they stand in the corpus, a line for each sentence.</p>\n"]
    for number, (name, sentences) in enumerate(samples):
        items = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences)
        unfolded = "" if number else " open"
        lines.append(f"<details{unfolded}><summary>{escape(name)}</summary>\n<ol>\n{items}</ol></details>\n")
    return "".join(lines)


def markdown(
    title: str,
    sections: Sequence[PageSection],
    samples: Samples = (),
    embed: bool = False,
    files: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The page as Markdown. `embed` includes the pictures as data URIs; `files` names the file of a picture by its
    caption. Other pictures are left out.
    """
    return "\n".join(_markdown_lines(title, sections, samples, embed, files))


def _markdown_lines(
    title: str, sections: Sequence[PageSection], samples: Samples, embed: bool, files: Mapping[str, str]
) -> Iterator[str]:
    yield f"# {title}\n"
    for section in sections:
        yield f"## {section.title}\n\n{plain(section.text)}\n"
        if section.points:
            yield "".join(f"- {plain(point)}\n" for point in section.points)
        if section.rows:
            rows = ([plain(_shown(cell)) for cell in row] for row in section.rows)
            yield markdown_table([*map(plain, section.head)], rows)
        for what, png in section.pictures.items():
            if embed or what in files:
                yield f"![{what}]({_embedded(png) if embed else files[what]})\n"
    if samples:
        yield "## Samples\n\nDocuments as they stand in the corpus, a line for each sentence.\n"
    for name, sentences in samples:
        text = "\n".join(sentences)
        yield f"### {plain(name)}\n\n{fenced(text)}\n"


def _shown(cell: str | int | float) -> str:
    if isinstance(cell, float):
        return "< 0.01%" if 0 < cell < 1e-4 else f"{cell:.2%}"
    return cell if isinstance(cell, str) else f"{cell:,}"


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
