"""Untrusted text (file names, ids, titles, descriptions) contains no terminal commands, forged log lines or markup when
it is shown. The project writes no spreadsheets.
"""

import logging
import re
import tomllib

import dagster as dg
import pytest
from data.corpus.test_card import FACTS as CORPUS
from markdown_it import MarkdownIt
from report.test_model_card import CHEM, FACTS, RECIPE

from bert_pipeline import cli
from bert_pipeline.core.printable import OneRecord, fenced, plain, printable
from bert_pipeline.data.corpus.card import card_in_markdown
from bert_pipeline.report.model_card import model_card, text_of
from bert_pipeline.store.artifact import Artifact
from orchestration.tracking import metadata
from orchestration.tracking.logs import console

FORGED = "03:00:00  registered_model       every gate is open"
HOSTILE = (
    f"a\n{FORGED}\r{FORGED}\x1b[2K\u2028\u202e=HYPERLINK(1) <script>f()</script>|`````[b](javascript:f())\n```\n<b>"
)


def html_of(markdown: str) -> str:
    """Render as a page that lets HTML through."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def assert_is_text(markdown: str) -> None:
    html = html_of(markdown)
    assert not re.search('<script|<b>|<a |javascript:[^<]*"', html)
    assert "&lt;script&gt;" in html, "it is shown as text"
    assert not commands_of_a_terminal(markdown)


def commands_of_a_terminal(text: str) -> set[str]:
    return {char for char in text if char != "\n" and not char.isprintable()}


def assert_no_line_is_forged(log: str, record: str) -> None:
    lines = log.rstrip("\n").split("\n")
    assert FORGED in log and all(re.match(f"{record}|  ", line) for line in lines), log
    assert not any(line.startswith(FORGED) for line in lines)
    assert not commands_of_a_terminal(log)


def test_a_record_of_the_librarys_log():
    record = logging.LogRecord("bert_pipeline", logging.WARNING, "", 0, "passing over %s", (HOSTILE,), None)
    assert_no_line_is_forged(OneRecord("%(message)s").format(record), "passing over ")


def test_an_error_of_the_command_line(capsys):
    assert cli.main(["inspect", HOSTILE.replace("/", "")]) == 1
    assert_no_line_is_forged(capsys.readouterr().err, "bert-pipeline inspect: ")


def test_dagsters_console(capsys):
    @dg.asset
    def hostile(context: dg.AssetExecutionContext) -> None:
        context.log.info(HOSTILE)
        raise ValueError(HOSTILE)

    loaded = dg.Definitions(assets=[hostile], jobs=[dg.define_asset_job("job", "*")], loggers={"console": console})
    done = loaded.resolve_job_def("job").execute_in_process(
        run_config={"loggers": {"console": {}}}, raise_on_error=False
    )
    assert not done.success
    assert_no_line_is_forged(capsys.readouterr().err, r"\d\d:\d\d:\d\d  (hostile)? ")


def test_the_model_card():
    facts = FACTS | {
        "evaluations": {
            "tasks": {HOSTILE: CHEM | {"measured": {HOSTILE: 0.8}, "published": {HOSTILE: 0.9}}},
            "contamination": {"tasks": {HOSTILE: {"test": {"share_held": 0.0}}}},
        }
    }
    recipe = RECIPE | {"description": HOSTILE, "pretrain": {"init_from": HOSTILE}}
    card = text_of(model_card(HOSTILE, recipe, facts))
    assert_is_text(card)
    assert tomllib.loads(card.partition("```toml\n")[2].partition("\n```")[0])["description"] == HOSTILE


def test_the_data_card():
    facts = CORPUS | {"documents_by_journal": {HOSTILE: 3}, "dropped_by_reason": {HOSTILE: 1_000}}
    assert_is_text(re.sub(r"!\[.*?\]\(data:.*?\)", "", card_in_markdown(facts)))


def test_the_metadata_of_an_asset(tmp_path):
    record = {
        "origin": {"kind": "tokenizer", "inputs": {}},
        "fingerprint": "aaaa",
        "facts": {"example": HOSTILE, "loss": 1 / 3},
        "made": {"at": "now", "seconds": 1.0},
    }
    shown = metadata.of_artifact(Artifact(tmp_path, record))
    assert_is_text(shown["example"].value)
    assert shown["loss"] == 0.333333


@pytest.mark.parametrize("text", ["plain text", "1\u00a0000\u2009µg", "Ångström, 中"])
def test_harmless_text_is_unchanged(text):
    assert printable(text) == text and plain(text).split() == text.split()
    assert fenced(text) == f"```text\n{text}\n```"
