"""Cleaning rules remove residue and keep what an author wrote."""

import os
import re
import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.data.corpus.cleaning import RULES, apply_rules
from bert_pipeline.recipe import CleaningRule

ENDING = "The drug was safe."

NOTICES = [
    "Copyright (c) 2020 Elsevier Inc. All rights reserved.",
    "Copyright © 2020 Elsevier Inc. All rights reserved.",
    "(c) 2019 The Authors. Published by John Wiley & Sons Ltd on behalf of the Society of Fictional Medicine.",
    "This article is protected by copyright. All rights reserved.",
    "Copyright 2001 Academic Press.",
    "Copyright 2001 Academic Press",
    "©2011 AACR",
    "© The Author 2015. Published by Oxford University Press. All rights reserved.",
    "© Springer-Verlag 2010",
    "Crown copyright (c) 2009.",
    "Copyright RSNA, 2003",
    "c2004 COSPAR. Published by Elsevier Ltd. All rights reserved",
    "(PsycINFO Database Record (c) 2014 APA, all rights reserved).",
    "(copyright) 2011 Elsevier Ltd.",
    "Published by Elsevier B.V.",
    "© 2016 The Authors. This is an open access article under the CC BY license "
    "(http://creativecommons.org/licenses/by/4.0/).",
    "Published 2013. This article is a U.S. Government work and is in the public domain in the USA.",
]
CHANGED = {
    "entities": [
        ("p &lt; 0.05", "p < 0.05"),
        ("p &amp;lt; 0.05", "p < 0.05"),
        ("Smith &amp;amp; Jones", "Smith & Jones"),
        ("&#x3b1;-synuclein, &#946;-actin", "α-synuclein, β-actin"),
        ("2.5 &mgr;g of IFN-&ggr; and &OHgr;", "2.5 μg of IFN-γ and Ω"),
        ("4.4&ndash;8.2%", "4.4–8.2%"),
    ],
    "latex": [
        ("was \\documentclass[12pt]{minimal} \\begin{document}$$\\eta_p^2$$\\end{document}ηp2 = 0.2", "was ηp2 = 0.2"),
        ("Q MathType@MTEF@5@5@+=feaafiart1ev1 is", "Q  is"),
    ],
    "markup": [
        ("CD4<sup>+</sup> cells", "CD4+ cells"),
        ("H<sub>2</sub>O of <i>E. coli</i>", "H2O of E. coli"),
        ("5-HT<inf>2A</inf>", "5-HT2A"),
        ('<AbstractText Label="AIMS" NlmCategory="OBJECTIVE">To see.</AbstractText>', " To see. "),
        ("<p>One.</p><p>Two.</p>", " One.  Two. "),
        ('see <a href="https://example.org/">here</a>', "see here"),
        ("<jats:title>Aim</jats:title>", " Aim "),
        ("<mml:math><mml:mi>x</mml:mi></mml:math>", "x"),
        ("<!-- page 2 -->Rats", "Rats"),
        ('known. xmlns:ns0="http://www.w3.org/1999/xlink">Rats', "known. Rats"),
        ('id="Par1">Rats', "Rats"),
    ],
    "hyphenation": [
        ("the treat-\nment", "the treatment"),
        ("the treat- \r\n  ment", "the treatment"),
        ("Hyper-\ntension", "Hypertension"),
        ("con-\ntroll-\ning", "controlling"),
        ("dose-\ndependent", "dose-dependent"),
        ("double-\nblind", "double-blind"),
        ("IL-\n2 and COVID-\n19", "IL-2 and COVID-19"),
        ("pre-\nand post-treatment", "pre- and post-treatment"),
        ("a sugar-coated pill; sugar-\ncoated", "a sugar-coated pill; sugar-coated"),
        ("followed; follow-\ned", "followed; followed"),
        ("treat\u00ad\nment", "treatment"),
    ],
    "misread": [
        ("6 Ã— 10(-3), Â£84, â‰¤ 3, childrenâ€™s", "6 × 10(-3), £84, ≤ 3, children’s"),
        ("2.5 Î¼g", "2.5 μg"),
        ("PÂ = 0.02", "P = 0.02"),
    ],
    "truncation": [
        ("It ended.(ABSTRACT TRUNCATED AT 250 WORDS)", "It ended."),
        ("It ended. (ABSTRACT TRUNCATED AT 400 WORDS).", "It ended."),
        ("It ended. (ABSTRACT TRUNCATED)", "It ended."),
        ("It ended. ABSTRACT TRUNCATED AT 250 WORDS", "It ended."),
    ],
    "editorial_notes": [
        ("20 ml [corrected] of lidocaine [corrected].", "20 ml of lidocaine."),
        ("It works. [References: 36]", "It works."),
        ("Aspirin in mice.[see comment]. [Review] [34 refs]", "Aspirin in mice."),
        ("A study [published erratum appears in J Foo [Br] 1991 Feb;5(2):245]", "A study"),
        ("Platelets in fever (author's transl)", "Platelets in fever"),
    ],
    "translated_titles": [
        ("[Fast electrons in therapy].", "Fast electrons in therapy."),
        ("[Fast electrons in therapy]. [German]", "Fast electrons in therapy."),
        ("[Is [18F]FDG of use?]", "Is [18F]FDG of use?"),
    ],
    "placeholders": [
        ("is [symbol: see text]50 (a, [Formula: see text]).", "is 50 (a,)."),
        ("shown [table: see text]", "shown"),
    ],
    "supplements": [
        ("Table S1. Click here for additional data file.", "Table S1."),
        (
            "Done. The pre-publication history for this paper can be accessed here: "
            "http://www.biomedcentral.com/1471-0000/1/1/prepub",
            "Done.",
        ),
    ],
    "copyright_notices": [(f"{ENDING} {notice}", ENDING) for notice in NOTICES]
    + [(f"{ENDING}{notice}", ENDING) for notice in NOTICES if not notice.startswith("c20")]
    + [(notice, "") for notice in NOTICES],
}
UNCHANGED = {
    "entities": ["W&A; therefore", "AT&T", "&lt", "R&D; and &nosuchname;", "S&P 500; more", "&#99999999;"],
    "latex": ["\\documentclass is a command", "a \\beta cell", "costs $5 to $10"],
    "markup": [
        "p < 0.05 and n > 3",
        "a<b and c>d",
        "</=70 and >70",
        "the mean <z1> and <(z1)2>",
        "the mean <p> of the momentum",
        "<median vs >median",
        "x<i>y",
        "0.5<ACQ<1.0 and B>A",
        "if n<small or n>large",
    ],
    "hyphenation": [
        "pre- and post-treatment",
        "a dash -\nhere",
        "- item\n- item",
        "dose-dependent",
        "ends-\n\nNew paragraph",
        "a\nb",
    ],
    "misread": ["CAFÉ », Â la carte, SÃO PAULO, naïve, Ångström, pâté", "γ-Î 5"],
    "truncation": ["The abstract truncated at 250 words was read.", "TRUNCATED protein "],
    "editorial_notes": [
        "a [corrected for age] ratio",
        "[K(+)] and [Ca2+]",
        "[1, 2]",
        "[review of 12 charts]",
        "[comments were read]",
        "We corrected the sum.",
    ],
    "translated_titles": ["[1,2,4]Triazolo rings.", "[18F]FDG and [11C]PIB", "A [nested] title", "[Aim] To see [it]"],
    "placeholders": ["see text", "(see text for details)", "[see Table 2]"],
    "supplements": ["Patients click here for files.", "The pre-publication history is known. "],
    "copyright_notices": [
        "The law of copyright was discussed.",
        "Copyright law is discussed.",
        "Copyright Act of 1976 and its effects on journals.",
        "We asked who holds the copyright (c) of 2020 questionnaires.",
        "Copyright (c) 2020 Elsevier Inc. Patients were treated.",
        "Groups were (a) young, (b) old and (c) 2000 patients with asthma.",
        "Analyses used JMP© 8.0.1 and STATA.",
        "© 2019 The Authors. CONCLUSIONS: Rats live long.",
        "Published by nobody, it was lost.",
        "Two thousand papers were published by Elsevier.",
        "The authors reserved all rights.",
        "x" * 470 + " Published by Elsevier B.V.",  # no sentence ends before it, wherever the search begins
        "x" * 474 + " Published by Elsevier B.V.",
    ],
}
PIECES = [each for rule in (CHANGED, UNCHANGED) for examples in rule.values() for each in examples]
PIECES = [each if isinstance(each, str) else each[0] for each in PIECES]
FRAGMENTS = [
    *(
        "&",
        "amp;",
        "lt;",
        "&am",
        "&#112;",
        "&semi;",
        "#38;",
        "<",
        ">",
        "<s",
        "up>",
        "</",
        "<b",
        "/b>",
        "-\n",
        "\u00ad\n",
    ),
    *("[", "]", ". ", "(c) ", "2020 ", "©", "Elsevier", "see text]", "(ABSTRACT TRUNCATED", ")", "Ã", "‚", "Â", " "),
    *("[corrected", "\\documentclass", "\\end{document}", 'id="', '"', "a", "treat", "ment", "All rights reserved"),
]
TEXTS = st.lists(st.sampled_from(PIECES + FRAGMENTS * 3) | st.text(max_size=8), max_size=12).map("".join)


def cases(table):
    return [
        pytest.param(name, each, id=f"{name}-{number}") for name in table for number, each in enumerate(table[name])
    ]


def test_every_rule_is_tested():
    assert RULES.keys() == CHANGED.keys() == UNCHANGED.keys()


@pytest.mark.parametrize(("name", "example"), cases(CHANGED))
def test_residue_is_removed(name, example):
    before, after = example
    assert RULES[name](before) == after


@pytest.mark.parametrize(("name", "text"), cases(UNCHANGED))
def test_what_an_author_wrote_is_kept(name, text):
    assert RULES[name](text) == text


@pytest.mark.parametrize("name", RULES)
def test_the_docstring_of_a_rule_has_an_example(name):
    assert re.search(r"[\"“].+[\"”]", RULES[name].__doc__, re.DOTALL)


@settings(max_examples=150)
@given(TEXTS)
def test_every_rule_is_idempotent_and_adds_nothing(text):
    for name, rule in RULES.items():
        cleaned = rule(text)
        assert rule(cleaned) == cleaned, name
        assert len(cleaned) <= len(text), name


@given(st.text(st.characters(blacklist_characters="&<>[](@\\©\n"), max_size=300))
def test_plain_text_is_unchanged(text):
    text = re.sub(r"(?i)copyright|truncated|reserved|publish|click|\([cC]\)|c(?=19|20)|author|[ÂÃÎÏâ]", "", text)
    assert apply_rules([text], list(RULES)) == ((text,), [])


def test_rules_apply_in_order_to_every_text_and_are_reported():
    texts = ("[Aspirin in rats].", "H&amp;lt;sub&amp;gt;2&lt;/sub&gt;O.", f"{ENDING} {NOTICES[0]} [References: 3]")
    cleaned, changed = apply_rules(texts, list(RULES))
    assert cleaned == ("Aspirin in rats.", "H2O.", ENDING)
    assert changed == ["entities", "markup", "editorial_notes", "translated_titles", "copyright_notices"]
    assert apply_rules(texts, ["markup", "entities"])[0][1] == "H<sub>2</sub>O."
    assert apply_rules(texts, []) == (texts, [])
    assert apply_rules([], ["markup"]) == ((), [])
    with pytest.raises(KeyError, match="no-such-rule"):
        apply_rules(texts, ["no-such-rule"])


ADVERSARIES = [
    *("&", "&amp;", "&am", "p;", "&lt&semi;", "&#38;#38;", "<", "<a x='1' ", "<a x='", "<b>", "</b>", "<!--", "<?x "),
    *(
        'id="',
        'id="" ',
        'xmlns:a="b" ',
        "\\documentclass",
        "\\documentclass\\end{document}",
        "MathType@MTEF@",
        "x",
        "a-",
    ),
    *(
        "a-\n",
        "a-\nb",
        "-\n",
        "- ",
        "Ã",
        "Ã—",
        "Â ",
        "â‰¤",
        "(ABSTRACT TRUNCATED",
        "ABSTRACT TRUNCATED AT 250 WORDS",
        " ",
    ),
    *("[", "]", "[a]", "[corrected", "[corrected]", ".[see comment]", "[erratum in ", "[Review] ", "(author's transl)"),
    *(
        "[formula: see text]",
        "(formula ",
        "Click here for ",
        "Click here for file ",
        "(c) ",
        "(c) 2020 A",
        "© 2020 Elsevier ",
    ),
    *("Copyright ", "This is an open access article ", "Published by ", "All rights reserved. ", ".", "\n", "\t"),
]


@pytest.mark.parametrize("length", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("unit", ADVERSARIES)
def test_time_is_linear_in_the_length(unit, length):
    """Quadratic time would take minutes, and hours for a megabyte."""
    started = time.process_time()
    apply_rules([f"Rats{unit * (length // len(unit))}"], list(RULES))
    assert time.process_time() - started < 20


@pytest.mark.parametrize("text", ["&#5&#5&#5&#5&#4" * 9_000 + "9" + ";;;;;" * 9_000, "<s" * 9_000 + "up>" * 9_000])
def test_residue_nested_deeper_than_in_real_text_is_kept(text):
    """Each pass would resolve only the innermost level; 1 to 9 are characters 49 to 57."""
    assert apply_rules([text], ["entities", "markup"]) == ((text,), [])


@pytest.mark.slow
@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
def test_real_citations_lose_residue_and_little_else():
    import gzip
    import json
    from collections import Counter
    from pathlib import Path

    documents: Counter[str] = Counter()
    lost = characters = 0
    path = Path(os.environ["BERT_PIPELINE_DATA"], "corpus", "pubmed-abstracts.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            texts = (record.get("title") or "", record["text"])
            cleaned, changed = apply_rules(texts, list(RULES))
            documents.update(changed)
            characters += sum(map(len, texts))
            lost += sum(map(len, texts)) - sum(map(len, cleaned))
    assert documents["truncation"] > 400 and documents["copyright_notices"] > 350 and documents["markup"] > 30
    assert 0.002 * characters < lost < 0.003 * characters


def test_the_recipe_type_lists_the_rules_in_their_order():
    assert get_args(CleaningRule) == ("all", *RULES)
