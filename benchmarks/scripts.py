"""Generate text in other scripts than English uses.

    python -m benchmarks.scripts korean --megabytes 5 > korean.txt

A language has units (syllables or letters), stems of a few units, and endings. Units and stems are drawn by Zipf's law,
so their frequencies and lengths resemble real text, which has a meaning. Documents of 3 to 20 sentences are separated
by a blank line. The same name gives the same text.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

SEED = 12345


@dataclass(frozen=True)
class Script:
    units: Sequence[str]
    stem_units: tuple[int, int]
    """Least and largest number of units of a stem."""
    num_stems: int
    endings: Sequence[str] = ("",)
    between: str = " "
    """Between words."""
    comma: str = ", "
    stop: str = ". "

    def documents(self) -> Iterator[str]:
        """Documents without end."""
        rng = random.Random(SEED)
        unit_weights, stem_weights = _zipf(len(self.units)), _zipf(self.num_stems)
        stems = [
            "".join(rng.choices(self.units, cum_weights=unit_weights, k=rng.randint(*self.stem_units)))
            for _ in range(self.num_stems)
        ]

        def clause() -> str:
            words = rng.choices(stems, cum_weights=stem_weights, k=rng.randint(3, 12))
            return self.between.join(word + rng.choice(self.endings) for word in words)

        while True:
            sentences = (
                self.comma.join(clause() for _ in range(rng.randint(1, 3))) + self.stop
                for _ in range(rng.randint(3, 20))
            )
            yield "".join(sentences).strip()


def _zipf(count: int) -> list[float]:
    return list(accumulate(1 / rank for rank in range(1, count + 1)))


def _letters(first: int, last: int, step: int = 1) -> list[str]:
    return [chr(code) for code in range(first, last + 1, step)]


def _syllables(*parts: Sequence[str]) -> list[str]:
    """All combinations of one of each part, in a fixed random order, so that the frequent ones are mixed."""
    syllables = ["".join(each) for each in product(*parts)]
    random.Random(SEED).shuffle(syllables)
    return syllables


_HANZI, _HIRAGANA = _letters(0x4E00, 0x9FA5, 5), _letters(0x3042, 0x3093)
_LATIN = ["IL-2", "CD4+", "COVID-19", "2020", "3.5", "mg"]
_FACES = ["😀", "😂", "🥰", "👍🏽", "❤️", "👩‍🔬", "👨‍👩‍👧‍👦", "🇰🇷", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "5️⃣", "✔︎", "🧬", "🩺", "☕", "🫠"]

SCRIPTS = {
    "korean": Script(
        _syllables(_letters(0xAC00, 0xD7A3, 7)),
        (2, 4),
        60_000,
        [
            "은",
            "는",
            "이",
            "가",
            "을",
            "를",
            "에",
            "에서",
            "으로",
            "과",
            "의",
            "도",
            "하고",
            "하였다",
            "입니다",
            "들은",
            "까지",
        ],
    ),
    "chinese": Script(
        _syllables(_HANZI),
        (1, 2),
        40_000,
        [*[""] * 10, *_LATIN],
        between="",
        comma="，",
        stop="。",
    ),
    "japanese": Script(
        _syllables(_HANZI[:2000]),
        (1, 2),
        40_000,
        [*_syllables(_HIRAGANA)[:30], "する", "した", "ます", "について", "では", "が", "ガーゼ", *_LATIN],
        between="",
        comma="、",
        stop="。",
    ),
    "thai": Script(
        _syllables(_letters(0x0E01, 0x0E2E), ["า", "ี", "ั", "ุ", "ำ", "โ", "เ"], ["", "", "่", "้"]),
        (1, 3),
        30_000,
        between="",
        comma=" ",
        stop="\n",
    ),
    "hindi": Script(
        _syllables(_letters(0x0915, 0x0939), ["", "ा", "ि", "ी", "े", "ो", "ं", "्"], ["", "", "़"]),
        (1, 4),
        40_000,
        ["", "ों", "ने", "में"],
        stop="। ",
    ),
    "arabic": Script(
        _syllables(_letters(0x0627, 0x063A) + _letters(0x0641, 0x064A), ["", "", "", "َ", "ِ", "ّ", "ـ"]),
        (3, 6),
        40_000,
        ["", "ة", "ات", "ون"],
        comma="، ",
    ),
    "greek": Script(
        _syllables(_letters(0x03B1, 0x03C9), ["α", "έ", "ί", "ό", "ύ", "ῶ", "ᾳ", "ΐ"]),
        (2, 5),
        40_000,
        ["ς", "ν", "Ή", ""],
        comma="· ",
    ),
    "emoji": Script(
        _syllables(["dose", "naïve", "“well”", "it’s", "50–60", "µg", "β", "…"], _FACES, ["", " ", "\u200b"]),
        (1, 3),
        2_000,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument(
        "--megabytes", type=float, default=5.0, help="megabytes of UTF-8 to write (default: %(default)g)"
    )
    arguments = parser.parse_args()
    left = arguments.megabytes * 1e6
    for document in SCRIPTS[arguments.script].documents():
        left -= sys.stdout.buffer.write(f"{document}\n\n".encode())
        if left <= 0:
            break


if __name__ == "__main__":
    main()
