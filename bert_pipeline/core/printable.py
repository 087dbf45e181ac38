"""Show untrusted text safely: no terminal control sequences, no forged log lines, no markup in pages.

File names, ids and texts may contain line ends, escape sequences, HTML and Markdown.
"""

import logging
import re
import sys
import unicodedata


def shows(char: str) -> bool:
    """False for control characters, line ends and invisible characters; spaces of any width are harmless."""
    return char.isprintable() or unicodedata.category(char) == "Zs"


def printable(text: str) -> str:
    """The text on one line, with an escape in place of each character that `shows` rejects."""
    return "".join(char if shows(char) else ascii(char)[1:-1] for char in text)


def one_record(text: str) -> str:
    """Indent every line after the first, so that a record cannot contain what looks like another record."""
    return "\n  ".join(printable(line) for line in text.splitlines())


class OneRecord(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return one_record(super().format(record))


def log_to_stderr() -> None:
    """Log this process's records of level INFO and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneRecord("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def plain(text: str) -> str:
    """Escape text for Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!])", r"\\\1", printable(" ".join(text.split())))


def fenced(text: str) -> str:
    """A Markdown code block with the text; its fence is longer than any fence in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    shown = "\n".join(map(printable, text.split("\n")))
    return f"{fence}text\n{shown}\n{fence}"
