"""Documentation, comments, docstrings and strings are in plain technical English: no phrase of PHRASES, no bare tables.

To check only some files and folders: python tests/test_language.py README.md docs infra
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PHRASES = {
    r"\banew\b": "again, from scratch",
    r"\blest\b": "so that ... not",
    r"\b(whereof|thereof|whereby|wherein|whither)\b": "of it, by which, in which",
    r"\b(is|are|was|were) (told|asked|looked at|gone on with)\b": "name the actor: X reports, requests, checks",
    r"\b(stands?|stood|standing) (already|there)\b": "exists, existing",
    r"\bwhat (stands|stood)\b": "existing files, existing artifacts",
    r"\bwhat (is|was) (dear|cheap)\b": "the noun: the data assets, pretraining",
    r"\b(go|goes|going|went) on (from|where)\b": "resume, continue",
    r"\bgone on\b": "resumed, continued",
    r"\bnobody asked\b": "unrequested",
    r"\bas (it|they) (is|are|was|were|stands?|stood) then\b": "the current ...",
    r"\b(would|will) come again\b": "would recur",
    r"\bhas not the form\b": "is not a valid ...",
}
"""Regular expressions that ignore case, and the plain alternative. A space also matches a line break."""

PROSE = ("README.md", "CHANGELOG.md", "Makefile", "docs/**/*.md", "infra/**/*.md", "infra/**/*.yaml", "infra/**/*.sh")
CODE = [f"{folder}/**/*.py" for folder in ("bert_pipeline", "orchestration", "benchmarks", "tests", "docs", "infra")]
WITH_TABLES = ("README.md", "CHANGELOG.md", "docs/**/*.md", "infra/**/*.md")
SPACE = r"[\s#\"'*]+"
"""Between two words: also a line break with the mark of a comment or the quotes of adjacent strings."""


def files(patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(found - {Path(__file__).resolve()})


def prose(path: Path) -> str:
    """Return the text of a file. In Python files, code is blanked; comments and strings keep their lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    lines = [re.sub(r"\S", "\0", line) for line in text.splitlines()]
    original = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            (first, begin), (last, end) = token.start, token.end
            for number in range(first - 1, last):
                left = begin if number == first - 1 else 0
                right = end if number == last - 1 else len(original[number])
                lines[number] = lines[number][:left] + original[number][left:right] + lines[number][right:]
    return "\n".join(lines)


def phrases(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, phrase and plain alternative."""
    for pattern, plain in PHRASES.items():
        for match in re.finditer(pattern.replace(" ", SPACE), text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, " ".join(re.split(SPACE, match[0])), plain


def faults(paths: Sequence[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}; plain: {plain}"
        for path in paths
        for line, phrase, plain in sorted(phrases(prose(path)))
    ]


def tables(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and heading cells of each Markdown table outside code blocks."""
    text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    for match in re.finditer(r"^\|(.*)\|\n\|[-:| ]+\|$", text, re.MULTILINE):
        yield text.count("\n", 0, match.start()) + 1, [cell.strip() for cell in re.split(r"(?<!\\)\|", match[1])]


def test_no_phrase_of_the_list_is_used():
    found = faults(files([*PROSE, *CODE]))
    assert not found, "\n" + "\n".join(found)


def test_every_table_has_column_headings():
    heads = [
        (f"{path.relative_to(ROOT)}:{line}", cells)
        for path in files(WITH_TABLES)
        for line, cells in tables(path.read_text(encoding="utf-8"))
    ]
    assert len(heads) > 15 and [place for place, cells in heads if not all(cells)] == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ('x = 1  # drawn anew\ny = "anew"\n', [1, 2]),
        ("# what\n# stands\n", [1]),
        ('"""It goes\non where it ended."""\n', [1]),
        ("anew = told.is_(asked)  # renewal, harvest\n", []),
        ('x = "the run is"\ny = "told"\n', []),
    ],
)
def test_comments_and_strings_are_checked_and_code_is_not(tmp_path, code, lines):
    path = tmp_path / "it.py"
    path.write_text(code)
    assert [line for line, *_ in phrases(prose(path))] == lines


if __name__ == "__main__":
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT]
    found = faults([path for path in files([*PROSE, *CODE]) if any(path.is_relative_to(each) for each in chosen)])
    print("\n".join(found) or "no phrase of the list is used")
    sys.exit(bool(found))
