"""The embedded sample: generated abstracts of an invented pharmacology, and chemical-name annotation for them.

The demo downloads nothing, so its text is generated here. A document tells one story: one drug against one comparator
for one disease, from background to conclusion. A drug name is an invented prefix on a real nomenclature stem, and the
stem determines what the drug does (WHO, The use of stems in the selection of International Nonproprietary Names, "the
stem book"). No such drug, protein, microbe or trial exists, and every figure is random.

The annotated sentences come from the same grammar. It marks chemical names with ‹ and ›, which the plain text omits.
Each part of the task has its own names and sentence templates. So an encoder can learn only from the unannotated text
which of the new words in the test set are chemicals.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bert_pipeline.data.sources.sample.sentences import EFFECTIVE, INEFFECTIVE, PLANS, POPULATIONS, SENTENCES
from bert_pipeline.data.sources.sample.words import (
    AREAS,
    CLASSES,
    LABORATORIES,
    METABOLITES,
    NAMES_PER_CLASS,
    ONSETS,
    OTHER_NAMES,
    OTHER_NAMES_PER_AREA,
    PLAIN_CHEMICALS,
    SALTS,
    VOWELS,
)

NER_SENTENCES = {"train": 400, "dev": 150, "test": 400}
PARTS = ("train", "test", "dev", "test")
"""Name i of a list belongs to PARTS[i % 4]. Every third template and every second stem occur in the test only."""

SLOT = re.compile(r"\{([^{}]*)\}")
CHEMICAL = re.compile("‹([^›]*)›")
TOKEN = re.compile(r"[^\W_]+|[^\w\s]")  # BLURB's files split at all punctuation: p < 0 . 05


class Lexicon(NamedTuple):
    """The invented names of one seed."""

    drugs: dict[str, list[tuple[str, str]]]  # stem -> (name, the laboratory's code for it)
    others: dict[tuple[str, str], list[str]]  # (kind, area) -> names


Story = dict[str, Sequence[str]]
"""The choices for each slot of a sentence; chemical names are enclosed in ‹ and ›."""


def sample_documents(num_documents: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (document id, text) of documents 0, 1, ...; document k depends only on (seed, k)."""
    lexicon = _lexicon(seed)
    for number in range(num_documents):
        rng = Random(f"document {seed} {number}")
        story = _story(rng, lexicon)
        used: list[str] = []  # templates; each occurs at most once in a document
        for step in _pick(rng, PLANS).split():
            role = step.removesuffix("?")
            if role == step or rng.random() < 0.5:
                used.append(_pick(rng, [template for template in SENTENCES[role] if template not in used]))
        text = " ".join(_sentence(rng, template, story) for template in used)
        yield f"sample-{number:06d}", CHEMICAL.sub(r"\1", text)


def write_sample_ner(folder: Path, seed: int) -> None:
    """Write train.tsv, dev.tsv and test.tsv in BLURB's format: token, tab, B, I or O; a blank line ends a sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    lexicon = _lexicon(seed)
    for part, num_sentences in NER_SENTENCES.items():
        rng = Random(f"ner {part} {seed}")
        with (folder / f"{part}.tsv").open("w", encoding="utf-8", newline="\n") as file:
            for _ in range(num_sentences):
                template = _pick(rng, ner_templates(_pick(rng, list(SENTENCES)), part))
                sentence = _sentence(rng, template, _story(rng, lexicon, part))
                file.writelines(f"{token}\t{tag}\n" for token, tag in _tagged(sentence))
                file.write("\n")


def ner_templates(role: str, part: str) -> list[str]:
    """The sentence templates of a role for one part of the task."""
    return [template for i, template in enumerate(SENTENCES[role]) if (i % 3 == 2) == (part == "test")]


def _lexicon(seed: int) -> Lexicon:
    rng = Random(f"lexicon {seed}")
    taken = {""}

    def coin(ending: str) -> str:
        name = ""
        while name in taken:
            links = "lmnrstvx" if ending[:1] in VOWELS else ["", "", "n", "r"]
            syllables = [_pick(rng, choices) for choices in (ONSETS, VOWELS, ONSETS, VOWELS, links)]
            name = "".join(syllables) + ending
        taken.add(name)
        return name

    drugs = {}
    for number, stem in enumerate(row.stem for row in CLASSES):
        # Laboratories belong to a part of the annotation task, as names do: their number is a multiple of 4.
        laboratories = [LABORATORIES[(4 * number + i) % len(LABORATORIES)] for i in range(NAMES_PER_CLASS)]
        drugs[stem] = [(coin(stem), f"{laboratory}-{_integer(rng, 1000, 9999)}") for laboratory in laboratories]
    others = {
        (kind, area): [written(coin(endings[i // 2 % len(endings)])) for i in range(OTHER_NAMES_PER_AREA)]
        for kind, (written, endings) in OTHER_NAMES.items()
        for area in AREAS
    }
    return Lexicon(drugs, others)


def _story(rng: Random, lexicon: Lexicon, part: str = "") -> Story:
    """Draw the story of one drug; with `part`, all its names belong to that part of the annotation task."""

    def own(names: Sequence) -> Sequence:
        return [name for i, name in enumerate(names) if part in ("", PARTS[i % len(PARTS)])]

    classes = CLASSES[::2] if part in ("train", "dev") else CLASSES
    drug_class = _pick(rng, classes)
    rival = _pick(rng, [row for row in classes if row.area == drug_class.area])
    (name, code), (sibling, _) = _two(rng, own(lexicon.drugs[drug_class.stem]))
    other_name = sibling if rival is drug_class else _pick(rng, own(lexicon.drugs[rival.stem]))[0]
    salt = _pick(rng, own(SALTS)).format(name)
    drug_full, *drug = _pick(
        rng,
        [
            (f"‹{name}›", f"‹{name}›"),
            (f"‹{salt}›", f"‹{name}›"),
            (f"‹{code}›", f"‹{code}›"),
            (f"‹{name}› (‹{code}›)", f"‹{name}›", f"‹{name}›", f"‹{code}›"),
        ],
    )
    plain = [f"‹{chemical}›" for chemical in _two(rng, own(PLAIN_CHEMICALS))]
    others = {kind: _two(rng, own(lexicon.others[kind, drug_class.area])) for kind in OTHER_NAMES}
    area = {what: entries.split("; ") for what, entries in AREAS[drug_class.area].items()}
    verb, outcome, unit = _pick(rng, area["outcome"]).split("|")
    disease = _pick(rng, area["disease"])
    abbreviation = re.search(r"\((\w+)\)", disease)
    adverse, complication = _two(rng, area["adverse"])
    metabolite = _pick(rng, own(METABOLITES)).format(name)
    arm = _integer(rng, 10, 200)
    once = {  # drawn once: the same in all sentences
        "drug_full": drug_full,
        "comparator_drug": f"‹{other_name}›",
        "comparator": _pick(rng, [f"‹{other_name}›", "placebo"]),
        "metabolite": f"‹{metabolite}›",
        "mechanism": drug_class.mechanism,
        "target": drug_class.target,
        "route": drug_class.route,
        "dose": _pick(rng, drug_class.doses.split("|")),
        "mg_per_kg": _pick(rng, ["0.5", "1", "3", "10", "30"]),
        "disease_full": disease,
        "disease": abbreviation[1] if abbreviation else disease,
        "verb": verb,
        "outcome": outcome,
        "unit": unit,
        "adverse": adverse,
        "complication": complication,
        "animals": _pick(rng, area["animals"]),
        "tissue": _pick(rng, area["tissue"]),
        "patients": _pick(rng, POPULATIONS),
        "n": str(2 * arm),
        "arm": str(arm),
        "age": str(_integer(rng, 20, 79)),
        "weeks": str(_integer(rng, 2, 24)),
        "days": str(_integer(rng, 4, 28)),
    }
    return {
        **{slot: [words] for slot, words in once.items()},
        **_pick(rng, [EFFECTIVE, INEFFECTIVE]),
        **others,
        "drug": drug,
        "it": [*drug, "the drug", f"this {drug_class.mechanism}"],
        "plain": plain,
        "agent": [*plain, f"‹{other_name}›", *(others[kind][0] for kind in ("protein", "enzyme", "gene", "microbe"))],
    }


def _sentence(rng: Random, template: str, story: Story) -> str:
    text = template
    while slot := SLOT.search(text):  # innermost first: an alternative may contain slots
        content = slot[1]
        if content == "agent":  # the agents of a sentence differ
            filling = _pick(rng, [agent for agent in story["agent"] if agent not in text])
        elif content in story:
            filling = _pick(rng, story[content])
        elif "|" in content:
            filling = _pick(rng, content.split("|"))
        else:
            low, high = content.split("-")
            decimals = len(low.partition(".")[2])
            units = 10**decimals
            filling = f"{_integer(rng, round(float(low) * units), round(float(high) * units)) / units:.{decimals}f}"
        text = text[: slot.start()] + filling + text[slot.end() :]
    text = re.sub(r"\b([Aa]) (?=‹?[aeiouAEIO])", r"\1n ", text)
    text = text.replace("..", ".")  # if the last word is an abbreviation
    first = int(text.startswith("‹"))
    return text[:first] + text[first].upper() + text[first + 1 :]


def _tagged(sentence: str) -> Iterator[tuple[str, str]]:
    for number, stretch in enumerate(CHEMICAL.split(sentence)):  # the odd ones are chemical names
        for place, token in enumerate(TOKEN.findall(stretch)):
            yield token, "O" if number % 2 == 0 else "I" if place else "B"


# All draws use rng.random(): it is the only method of a seeded Random whose sequence is guaranteed to stay the same in
# every version of Python.


def _integer(rng: Random, low: int, high: int) -> int:
    """Uniform in low..high, both included."""
    return low + int(rng.random() * (high - low + 1))


def _pick(rng: Random, items: Sequence) -> Any:
    return items[_integer(rng, 0, len(items) - 1)]


def _two(rng: Random, items: Sequence) -> list:
    """Two different items."""
    first, step = _integer(rng, 0, len(items) - 1), _integer(rng, 1, len(items) - 1)
    return [items[first], items[(first + step) % len(items)]]
