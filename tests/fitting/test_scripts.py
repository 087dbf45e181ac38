"""Recipe keys by script, compared with the table of docs/languages.md."""

import pytest

from bert_pipeline.fitting.scripts import script_settings

TEXTS = {
    "Doses of 5 µg reduced α-synuclein in naïve mice. " + "Other mice recovered within days. " * 10: {},
    "Die Patienten erhielten täglich fünf Milligramm; für die Übrigen änderte sich die Dosis während der Prüfung.": {
        "tokenizer.strip_accents": False
    },
    "환자들은 매일 약을 복용하였다. 부작용은 없었다.": {
        "tokenizer.strip_accents": False,
        "tokenizer.limit_alphabet": 3_000,
    },
    "患者は毎日薬を飲みました。副作用はありませんでした。がん": {
        "tokenizer.strip_accents": False,
        "tokenizer.limit_alphabet": 6_000,
    },
    "患者每天服药。没有副作用。": {"tokenizer.limit_alphabet": 8_000},
    "ผู้ป่วย ได้รับ ยา ทุก วัน": {
        "tokenizer.strip_accents": False,
        "corpus.sentence_splitter": "lines",
        "nsp.objective": "none",
    },
    "मरीज़ों को हर दिन दवा दी गई। कोई दुष्प्रभाव नहीं हुआ।": {"tokenizer.strip_accents": False},
    "أخذ المرضى الدواء كل يوم، ولم تظهر آثار جانبية.": {"tokenizer.strip_accents": False},
    "1234 5678": {},
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:8])
def test_keys_by_script(text):
    assert {key: value for key, (value, _) in script_settings(text).items()} == TEXTS[text]
