"""The registered model as a service. MLflow stores this file beside the weights and runs it wherever the model is
loaded, so it imports nothing from this project.

A pretrained model fills masks and embeds texts:

    curl http://127.0.0.1:8080/invocations -H 'Content-Type: application/json' \\
      -d '{"inputs": ["treated with [MASK] daily"], "params": {"top_k": 3, "return_embeddings": true}}'

    {"predictions": [{"fills": [[{"token": "aspirin", "score": 0.41}, ...]], "embedding": [0.12, ...]}]}

A task model has annotate.py beside this file, and answers as described there:

    {"predictions": [{"spans": [{"start": 13, "end": 20, "type": "Chemical", "score": 0.99, "text": "aspirin"}]}]}
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from transformers import AutoTokenizer, BertForMaskedLM

TEXTS_AT_ONCE = 32
ANNOTATE = Path(__file__).with_name("annotate.py")


class FillMask(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Predict the most probable tokens for each [MASK] of a text and, on request, return an embedding of the text."""

    def load_context(self, context: Any) -> None:
        _assert_unchanged(Path(context.artifacts["model"]).parent)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = BertForMaskedLM.from_pretrained(context.artifacts["model"], use_safetensors=True)
        self.model = model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(context.artifacts["tokenizer"])

    def predict(self, context, model_input, params=None):  # without type hints: MLflow would infer a schema from them
        """Return one answer per text, in order; the texts are the first column of a table.

        `fills` lists for each [MASK] the `top_k` most probable tokens with their probabilities, highest first.
        `embedding`, with `return_embeddings`, is the mean of the last layer over the tokens that are neither special
        nor padding (Reimers and Gurevych 2019, section 3), or 0 if there are none. Raises MlflowException if a text
        has more tokens than the model reads, or top_k is out of range.
        """
        texts, vocabulary = model_input.iloc[:, 0].tolist(), self.model.config.vocab_size
        if not 1 <= params["top_k"] <= vocabulary:
            raise MlflowException.invalid_parameter_value(f"top_k is {params['top_k']}; remedy: 1 to {vocabulary}")
        return [
            answer
            for start in range(0, len(texts), TEXTS_AT_ONCE)
            for answer in self._answers(texts[start : start + TEXTS_AT_ONCE], start, **params)
        ]

    def _answers(self, texts: list[str], start: int, top_k: int, return_embeddings: bool) -> list[dict[str, Any]]:
        batch = self.tokenizer(texts, padding=True, return_tensors="pt", return_special_tokens_mask=True)
        lengths, limit = batch["attention_mask"].sum(1), self.model.config.max_position_embeddings
        for number, length in enumerate(lengths.tolist()):
            if length > limit:
                raise MlflowException.invalid_parameter_value(
                    f"text {start + number} has {length} tokens, the model reads {limit}; remedy: shorten it"
                )
        special = batch.pop("special_tokens_mask").bool()
        masked = batch["input_ids"] == self.tokenizer.mask_token_id
        with torch.inference_mode():
            hidden = self.model.bert(**batch.to(self.model.device)).last_hidden_state
            logits = self.model.cls(hidden[masked.to(hidden.device)])  # of the masks alone: a vocabulary wide each
        answers: list[dict[str, Any]] = []
        for row, of_masks in enumerate(logits.float().cpu().split(masked.sum(1).tolist())):
            best = of_masks.softmax(-1).topk(top_k)
            fills = [
                [
                    {"token": self.tokenizer.convert_ids_to_tokens(token), "score": score}
                    for token, score in zip(tokens, scores, strict=True)
                ]
                for tokens, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            answers.append({"fills": fills})
            if return_embeddings:
                words = hidden[row].float().cpu()[~special[row]]
                answers[-1]["embedding"] = words.mean(0).tolist() if len(words) else [0.0] * words.shape[-1]
        return answers


class TaskModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Answer texts, or pairs of texts, with a fine-tuned model."""

    def load_context(self, context: Any) -> None:
        model = Path(context.artifacts["model"])
        _assert_unchanged(model.parent)
        spec: Any = importlib.util.spec_from_file_location(ANNOTATE.stem, ANNOTATE)
        annotate = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(annotate)
        self.annotator = annotate.Annotator(model, Path(context.artifacts["tokenizer"]))

    def predict(self, context, model_input, params=None):  # without type hints: MLflow would infer a schema from them
        """Return one answer per row, in order. Raises MlflowException if a pair of texts is too long for the model."""
        answers = self.annotator.answers(list(model_input.itertuples(index=False, name=None)))
        for number, answer in enumerate(answers):
            if "error" in answer:
                raise MlflowException.invalid_parameter_value(f"row {number}: {answer['error']}")
        return answers


def _assert_unchanged(model: Path) -> None:
    """Raise MlflowException if a file changed since the model was logged, or was added beside the weights."""
    listed = dict(line.split("  ", 1)[::-1] for line in (model / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    added = {
        path.relative_to(model).as_posix() for part in ("model", "components") for path in (model / part).rglob("*")
    }
    wrong = [name for name in added - listed.keys() if (model / name).is_file()]
    for name, digest in listed.items():
        with (model / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                wrong.append(name)
    if wrong:
        raise MlflowException(
            f"{model}: {', '.join(sorted(wrong))} changed since registration; remedy: register the model again"
        )


mlflow.models.set_model(TaskModel() if ANNOTATE.exists() else FillMask())
