"""The answers of a fine-tuned model to texts of any length.

    ner, pico       {"spans": [{"start", "end", "type", "score", "text"}, ...]}, in the order of the text
    relation, qa    {"label", "scores": {label: probability}}
    documents       {"labels": [...], "scores": {label: probability}}; a label is given above a probability of 0.5
    similarity      {"value"}, on the scale of the task

`start` and `end` count characters (Unicode code points) from 0, `end` exclusive. A word is what the tokenizer separates
at blanks and punctuation, except at the characters that mostly occur inside words in the task's training file, such as
the hyphen in NF-kappa. As in fine-tuning, the head reads the first piece of a word. An I without a B begins a span. The
score of a span is the mean probability of the tags of its words.

A longer input is read in windows that overlap by a quarter. Each word counts in the window where it has most context.
relation, qa: the mean probability of the windows; documents: the highest. A pair of texts for similarity must fit.

MLflow stores a copy of this file beside a registered task model, so it imports nothing from this project.
"""

import itertools
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

TAGGING = ("ner", "pico")
FIELDS = {"similarity": ("text", "text_pair"), "qa": ("question", "text")}
"""The parts of an input, by kind of task; ("text",) for the others."""
OVERLAP = 4
"""Neighbouring windows share 1/OVERLAP of their pieces."""
TOKENS_AT_ONCE = 8_192
"""Tokens per batch, with padding."""

Answer = dict[str, Any]


class NoTaskModel(ValueError):
    """A directory without a fine-tuned model of this project."""


class Window(NamedTuple):
    """A part of a text, as input of the model."""

    text: int
    """Number of the text."""
    input_ids: list[int]
    second: int
    """Position of the second text; `len(input_ids)` if there is only one."""
    outputs: list[int]
    """The positions that the head reads: the first pieces of words, or that of [CLS]."""
    words: list[tuple[int, int]]
    """ner, pico: start and end of the word of each output."""


class Annotator:
    """A task model and its tokenizer."""

    def __init__(self, model: Path, tokenizer: Path) -> None:
        """Load both from directories of transformers. Raises NoTaskModel if config.json names no task."""
        task = task_of(model)
        self.kind: str = task["kind"]
        self.max_seq_length: int = task["max_seq_length"]
        self.joining = frozenset(task["joining"])
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        auto = AutoModelForTokenClassification if self.kind in TAGGING else AutoModelForSequenceClassification
        loaded: Any = auto.from_pretrained(model, local_files_only=True, use_safetensors=True)
        self.model = loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.compute: Callable[[Sequence[Window]], Tensor] = self._on_padded_rows
        """The logits of all outputs of some windows: (outputs, classes)."""

    @property
    def fields(self) -> tuple[str, ...]:
        return FIELDS.get(self.kind, ("text",))

    def answers(self, texts: Sequence[tuple[str, ...]]) -> list[Answer]:
        """Return the answer to each text, or {"error": reason} for a pair that does not fit."""
        too_long = self._too_long(texts) if len(self.fields) == 2 else {}
        windows = list(self._windows(texts, [n for n in range(len(texts)) if n not in too_long]))
        parts: list[list[tuple[Window, Tensor]]] = [[] for _ in texts]
        for window, logits in zip(windows, self._logits(windows), strict=True):
            parts[window.text].append((window, logits))
        return [
            {"error": too_long[n]} if n in too_long else self._answer(text[0], part)
            for n, (text, part) in enumerate(zip(texts, parts, strict=True))
        ]

    def _too_long(self, texts: Sequence[tuple[str, ...]]) -> dict[int, str]:
        """Why a pair cannot be read, by its number. qa: the question must leave room to move on in the text."""
        found = {}
        for n, (first, second) in enumerate(texts):
            length = len(self.tokenizer(first, second if self.kind == "similarity" else "", verbose=False)["input_ids"])
            room = self.max_seq_length - (0 if self.kind == "similarity" else self.max_seq_length // OVERLAP + 1)
            if length > room:
                what = "the pair" if self.kind == "similarity" else "the question"
                found[n] = f"{what} has {length} tokens, and {room} are possible; remedy: shorten it"
        return found

    def _windows(self, texts: Sequence[tuple[str, ...]], chosen: Sequence[int]) -> Iterator[Window]:
        if not chosen:
            return
        batch = self.tokenizer(
            *(list(part) for part in zip(*(texts[n] for n in chosen), strict=True)),
            truncation="only_second" if len(self.fields) == 2 else "only_first",
            max_length=self.max_seq_length,
            stride=self.max_seq_length // OVERLAP,
            return_overflowing_tokens=True,
            verbose=False,
        )
        numbered = zip(batch["overflow_to_sample_mapping"], batch.encodings, strict=True)
        for number, group in itertools.groupby(numbered, key=lambda each: each[0]):
            encodings = [encoding for _, encoding in group]
            if self.kind in TAGGING:
                yield from self._windows_of_words(chosen[number], texts[chosen[number]][0], encodings)
                continue
            for encoding in encodings:
                second = encoding.type_ids.index(1) if 1 in encoding.type_ids else len(encoding.ids)
                yield Window(chosen[number], encoding.ids, second, [0], [])

    def _windows_of_words(self, number: int, text: str, encodings: Sequence[Any]) -> Iterator[Window]:
        places: dict[int, tuple[int, int]] = {}  # of pre-tokens; a window may begin or end inside one
        for encoding in encodings:
            for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
                if word is not None:
                    before = places.get(word, (start, end))
                    places[word] = (min(before[0], start), max(before[1], end))
        words = dict(words_of(text, sorted(places.values()), self.joining))  # end by start
        for encoding in encodings:
            outputs: dict[int, int] = {}  # position of the first piece by start of the word
            for position, (word, (start, _)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
                if word is not None and start in words:
                    outputs.setdefault(start, position)  # a character may be several pieces
            if outputs:
                of_words = [(start, words[start]) for start in outputs]
                yield Window(number, encoding.ids, len(encoding.ids), [*outputs.values()], of_words)

    def _logits(self, windows: Sequence[Window]) -> list[Tensor]:
        """Compute windows of similar length together; return the logits of each: (outputs, classes)."""
        found: dict[int, Tensor] = {}
        longest_first = sorted(range(len(windows)), key=lambda n: -len(windows[n].input_ids))
        while longest_first:
            count = max(1, TOKENS_AT_ONCE // len(windows[longest_first[0]].input_ids))
            batch, longest_first = longest_first[:count], longest_first[count:]
            with torch.inference_mode():
                logits = self.compute([windows[n] for n in batch]).float().cpu()
            found |= zip(batch, logits.split([len(windows[n].outputs) for n in batch]), strict=True)
        return [found[n] for n in range(len(windows))]

    def _on_padded_rows(self, windows: Sequence[Window]) -> Tensor:
        longest, pad = max(len(each.input_ids) for each in windows), self.tokenizer.pad_token_id
        ids = torch.full((len(windows), longest), pad)
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, each in enumerate(windows):
            length = len(each.input_ids)
            ids[row, :length], mask[row, :length] = torch.tensor(each.input_ids), 1
            types[row, each.second : length] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        known = self.tokenizer.model_input_names
        on_device = {name: each.to(self.model.device) for name, each in inputs.items() if name in known}
        logits = self.model(**on_device).logits
        if self.kind not in TAGGING:
            return logits
        return torch.cat([row[each.outputs] for row, each in zip(logits, windows, strict=True)])

    def _answer(self, text: str, parts: Sequence[tuple[Window, Tensor]]) -> Answer:
        labels = [self.model.config.id2label[n] for n in range(self.model.config.num_labels)]
        if self.kind in TAGGING:
            return {"spans": spans(text, *tags_of_words(parts, labels))}
        logits = torch.cat([each for _, each in parts])
        if self.kind == "similarity":
            return {"value": logits.item()}
        if self.kind == "documents":
            scores = logits.sigmoid().amax(0).tolist()
            chosen = [label for label, logit in zip(labels, logits.amax(0).tolist(), strict=True) if logit > 0]
            return {"labels": chosen, "scores": dict(zip(labels, scores, strict=True))}
        shares = logits.softmax(-1).mean(0)
        return {"label": labels[int(shares.argmax())], "scores": dict(zip(labels, shares.tolist(), strict=True))}


def task_of(model: Path) -> Mapping[str, Any]:
    """The task in the config.json of a directory. Raises NoTaskModel if there is none."""
    try:
        task = json.loads((model / "config.json").read_text(encoding="utf-8")).get("task")
    except FileNotFoundError:
        raise NoTaskModel(f"{model} has no config.json; remedy: name the directory of a task model") from None
    if not isinstance(task, dict) or not {"kind", "max_seq_length", "joining"} <= task.keys():
        raise NoTaskModel(f"{model} is not fine-tuned on a task; remedy: bert-pipeline finetune --model {model}")
    return task


def words_of(text: str, pre_tokens: Sequence[tuple[int, int]], joining: Container[str]) -> list[tuple[int, int]]:
    """Start and end of each word: a pre-token, or several with joining characters between them."""
    words: list[tuple[int, int]] = []
    joins = False
    for start, end in pre_tokens:
        is_joined = joins and words[-1][1] == start
        joins = text[start:end] in joining and bool(text[end : end + 1].strip())
        if words and words[-1][1] == start and (is_joined or joins):
            words[-1] = (words[-1][0], end)
        else:
            words.append((start, end))
    return words


def tags_of_words(
    parts: Sequence[tuple[Window, Tensor]], labels: Sequence[str]
) -> tuple[list[tuple[int, int]], list[str], list[float]]:
    """Return the place, the tag and its probability of each word; of several windows, the one with most context."""
    found: dict[tuple[int, int], tuple[int, str, float]] = {}
    for window, logits in parts:
        scores, classes = logits.softmax(-1).max(-1)
        rows = zip(window.outputs, window.words, scores.tolist(), classes.tolist(), strict=True)
        for position, word, score, number in rows:
            context = min(position, len(window.input_ids) - 1 - position)
            if word not in found or context > found[word][0]:
                found[word] = (context, labels[number], score)
    words = sorted(found)
    return words, [found[word][1] for word in words], [found[word][2] for word in words]


def spans(
    text: str, places: Sequence[tuple[int, int]], tags: Sequence[str], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """Join the tags B-TYPE, I-TYPE and O of words to spans."""
    found: list[list[int]] = []
    before = "O"
    for n, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if mark == "I" and before != "O" and kind == before.partition("-")[2]:
            found[-1].append(n)
        elif mark != "O":
            found.append([n])
        before = tag
    return [
        {
            "start": places[words[0]][0],
            "end": places[words[-1]][1],
            "type": tags[words[0]].partition("-")[2],
            "score": sum(scores[n] for n in words) / len(words),
            "text": text[places[words[0]][0] : places[words[-1]][1]],
        }
        for words in found
    ]
