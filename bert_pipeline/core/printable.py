"""Text of strangers, shown: it commands no terminal, forges no line of a log, and is no markup in a page.

File names, ids and texts may hold line ends, escape sequences, HTML and Markdown.
"""

import logging
import re
import sys
import unicodedata


def shows(char: str) -> bool:
    """False for what commands a terminal, ends a line or is invisible; spaces of any width are harmless."""
    return char.isprintable() or unicodedata.category(char) == "Zs"


def printable(text: str) -> str:
    """On one line; what does not show stands as its escape."""
    return "".join(char if shows(char) else ascii(char)[1:-1] for char in text)


def one_record(text: str) -> str:
    """Its lines after the first are indented, as none that begins a record is."""
    return "\n  ".join(printable(line) for line in text.splitlines())


class OneRecord(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return one_record(super().format(record))


def log_to_stderr() -> None:
    """What this process logs, from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneRecord("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def plain(text: str) -> str:
    """For Markdown, which takes it for nothing but text; on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!])", r"\\\1", printable(" ".join(text.split())))


def fenced(text: str) -> str:
    """For Markdown, as a block that stands as it is; the text may hold fences itself."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    shown = "\n".join(map(printable, text.split("\n")))
    return f"{fence}text\n{shown}\n{fence}"
