"""Rebuild a model bit for bit from the records of its artifacts.

    <folder>/<recipe>.toml          every value of the recipe, read back from the records of the artifacts
    <folder>/sources.jsonl          the files of the corpus with their SHA-256, if it was built from files
    <folder>/tokenizer/             the vocabulary, if it was learnt from other text than the model's
    <folder>/constraints.txt        the installed packages with their exact versions
    <folder>/reproduction.json      the origin of each artifact, and the SHA-256 of its contents
    <folder>/README.md              three commands, and what can differ

`rebuild` compares before it builds, so it reports a different file, recipe or code version before hours of training.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bert_pipeline.core.files import cached_digest
from bert_pipeline.lineage import make_stage, stage_origin
from bert_pipeline.recipe import Recipe
from bert_pipeline.recipe_files import load_recipe, to_toml
from bert_pipeline.stages import EVALUATION, STAGES, kinds_of, resolve_recipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact

SOURCES = "sources.jsonl"
CONSTRAINTS = "constraints.txt"
KEPT = "tokenizer"
EXPECTED = "reproduction.json"

PROOF = {
    "raw_corpus": "shards.jsonl",
    "tokenizer": "tokenizer.json",
    "nsp_dataset": "shards.jsonl",
    "masked_dataset": "shards.jsonl",
    "pretrained_checkpoint": "model.safetensors",
}
"""The file of each artifact whose SHA-256 identifies its contents. shards.jsonl lists the digests of the shards."""

README = """\
# Rebuild {model}

Recipe `{recipe}`, checkpoint `{checkpoint}`, built with Python {python} on {cores} core(s), {devices}, commit {commit}.

In a clone of the repository:

```sh
git checkout {commit}
python{python_minor} -m venv .venv && .venv/bin/pip install -c {folder}/{constraints} -e .
BERT_PIPELINE_HOME=$PWD/rebuilt taskset -c {cpus} .venv/bin/bert-pipeline rebuild {folder}
```

The third command builds every artifact in `BERT_PIPELINE_HOME` and ends with "bit for bit what it was". If an artifact
differs, the command stops there and names the difference. It reads the recipe's data from `BERT_PIPELINE_DATA`.

{notes}## What can differ

- **Text, vocabulary and datasets** are exact: identical on any processor, with any number of workers.
- **Training** adds floating-point numbers, and the order of a sum determines its last bits. Identical bits require the
  same number of threads (`taskset` gives the training as many cores), processes and devices, the same kind of processor
  or GPU (libraries choose their kernels by it), the same micro-batches (`BERT_PIPELINE_PER_DEVICE_TOKENS`) and the same
  versions of torch and its libraries. On other hardware the loss curves agree closely, and `rebuild` reports that the
  weights are not bit for bit the same. On GPUs training requests deterministic algorithms, but no test has compared two
  runs there.
- **A budget in minutes** (`pretrain.budget_minutes`) is converted to steps by measuring the speed, so only a recipe in
  steps is exact.
- **Fine-tuning scores** depend on the weights, so the same limits apply.
"""


class ReproductionError(ValueError):
    """Something differs from the records, or the records are incomplete."""


def recorded_recipe(name: str, artifacts: Mapping[str, Artifact], description: str = "") -> dict[str, Any]:
    """Return the values of the recipe by section, read from the records of all its artifacts (by kind).

    A recipe that starts from another model gets no tokenizer section, because it may have none; its model section has
    the sizes of that model. Raises ReproductionError if an artifact is missing, or other code wrote its record.
    """
    if missing := [kind for kind in STAGES if kind not in artifacts]:
        raise ReproductionError(f"{', '.join(missing)} missing: without its record a part of the recipe is unknown")
    sections = {kind: made.record["origin"]["section"] for kind, made in artifacts.items()}
    pretrain = sections["pretrained_checkpoint"]
    values = {
        "description": description,
        "corpus": sections["raw_corpus"],
        "tokenizer": sections["tokenizer"],
        "nsp": _without(sections["nsp_dataset"], "max_seq_lengths"),
        "masking": sections["masked_dataset"],
        "model": pretrain["model"],
        "pretrain": _without(pretrain, "model"),
        "evaluation": {
            "baseline": all(
                each.get("baseline", True) for kind, each in sections.items() if kind.startswith(EVALUATION)
            ),
            "tasks": [_task(task, artifacts) for task in sections["evaluations"]["tasks"]],
        },
    }
    if pretrain.get("init_from"):
        del values["tokenizer"]
    try:
        Recipe.model_validate_json(json.dumps({"name": name} | values))
    except ValidationError as error:
        raise ReproductionError(
            f"the records of recipe {name} were written by other code: {error}; remedy: check out the commit that "
            f"built them ({artifacts['pretrained_checkpoint'].record['made'].get('commit')})"
        ) from None
    return values


def _without(section: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != key}


def _task(name: str, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The recipe's settings of a task, from the scores of its artifact."""
    if (made := artifacts.get(EVALUATION + name)) is None:
        raise ReproductionError(f"{EVALUATION}{name} is missing: without it a part of the recipe is unknown")
    try:
        return json.loads((made.path / "scores.json").read_bytes())["settings"]
    except (FileNotFoundError, ValueError, KeyError):
        raise ReproductionError(
            f"{made.path / 'scores.json'} is missing or damaged; remedy: remove {made.path} and run again"
        ) from None


def write_reproduction(
    model: str, recipe: str, values: Mapping[str, Any], artifacts: Mapping[str, Artifact], out: Path
) -> None:
    """Write the folder. `model` is the title of its README, `values` come from `recorded_recipe`.

    Raises ReproductionError if `out` is not empty, or an artifact lacks the file that identifies its contents.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReproductionError(f"{out} is not empty; remedy: choose another directory")
    training = artifacts["pretrained_checkpoint"].record["made"]
    sources = artifacts["raw_corpus"].path / SOURCES
    packages = training.get("packages", {})
    pins = [f"{name}=={version}\n" for name, version in packages.items() if name != "bert-pipeline"]
    expected = {
        "model": model,
        "recipe": recipe,
        "artifacts": {kind: _expected(artifacts[kind]) for kind in artifacts},
    }

    out.mkdir(parents=True, exist_ok=True)
    (out / f"{recipe}.toml").write_text(to_toml(values), encoding="utf-8")
    if sources.is_file() and sources.stat().st_size:
        (out / SOURCES).write_bytes(sources.read_bytes())
    (out / CONSTRAINTS).write_text("".join(pins) or "# The versions were not recorded.\n", encoding="utf-8")
    if _vocabulary_was_kept(artifacts):
        shutil.copytree(artifacts["tokenizer"].path, out / KEPT)
    (out / EXPECTED).write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_readme(model, recipe, artifacts, out.absolute()), encoding="utf-8")


def _vocabulary_was_kept(artifacts: Mapping[str, Artifact]) -> bool:
    """Whether the vocabulary was learnt from other text than the model's (retraining.tokenizer = "keep")."""
    learnt_from = artifacts["tokenizer"].record["origin"]["inputs"]["raw_corpus"]
    return learnt_from != artifacts["raw_corpus"].fingerprint


def _expected(made: Artifact) -> dict[str, Any]:
    proof = PROOF.get(made.kind)
    if proof and not (made.path / proof).is_file():
        raise ReproductionError(f"{made.path / proof} is missing; remedy: remove {made.path} and run again")
    digest = cached_digest(made.path / proof) if proof else None
    return {"fingerprint": made.fingerprint, "origin": made.record["origin"], "file": proof, "sha256": digest}


def _readme(model: str, recipe: str, artifacts: Mapping[str, Artifact], out: Path) -> str:
    checkpoint = artifacts["pretrained_checkpoint"]
    made, section = checkpoint.record["made"], checkpoint.record["origin"]["section"]
    commit, cores = made.get("commit"), made.get("cores")
    commits = {kind: one.record["made"].get("commit") for kind, one in artifacts.items()}
    notes = []
    if wheel := made.get("wheel"):
        notes.append(
            f"Built with an installed wheel: install bert-pipeline {made['version']} instead of checking out a commit. "
            f"The wheel's files have the digest `{wheel}`, as records of artifacts show it."
        )
    elif not commit or commit.endswith("-dirty"):
        notes.append(f"The recorded commit is `{commit}`: changes that were not committed cannot be restored.")
    if others := [f"{kind} with `{each}`" for kind, each in commits.items() if each != commit]:
        notes.append(f"Built with other commits: {', '.join(others)}. `rebuild` reports different code versions.")
    if _vocabulary_was_kept(artifacts):
        notes.append(
            f"The vocabulary was learnt from earlier text: `{KEPT}` contains it, and `rebuild` uses that copy."
        )
    if not made.get("packages"):
        notes.append(f"`{CONSTRAINTS}` is empty: the versions were not recorded; use the repository's at that commit.")
    if not cores:
        notes.append("The number of cores was not recorded.")
    if init_from := section.get("init_from"):
        notes.append(
            f"Training starts from the model of `{init_from}` "
            f"({checkpoint.record['origin']['inputs'].get('initial_model')}), which must exist first: "
            "reproduce its version in the same BERT_PIPELINE_HOME, or copy its directory."
        )
    if artifacts["raw_corpus"].facts.get("files"):
        folder = artifacts["raw_corpus"].record["origin"]["section"]["path"]
        notes.append(
            f"The corpus is built from the files in `{SOURCES}`, in `{folder}`, which must have no other files."
        )
    python = made["python"]
    return README.format(
        model=model,
        recipe=recipe,
        checkpoint=checkpoint.fingerprint,
        python=python,
        python_minor=".".join(python.split(".")[:2]),
        cores=cores,
        cpus=f"0-{cores - 1}" if cores and cores > 1 else "0",
        devices=f"{checkpoint.facts.get('world_size', 1)} process(es)",
        commit=(commit or "COMMIT").removesuffix("-dirty"),
        folder=out,
        constraints=CONSTRAINTS,
        notes="".join(f"{note}\n\n" for note in notes),
    )


def rebuild(folder: Path, store: Path) -> dict[str, Artifact]:
    """Build all artifacts again in `store/kind/fingerprint`, and return them by kind; existing ones are used.

    Raises ReproductionError at the first artifact that would have another origin, or has other contents, and
    SourceError if a file of the corpus changed.
    """
    try:
        reproduction = json.loads((folder / EXPECTED).read_bytes())
        expected, name = reproduction["artifacts"], reproduction["recipe"]
    except FileNotFoundError:
        raise ReproductionError(
            f"{folder} has no {EXPECTED}; remedy: bert-pipeline reproduce models:/NAME/VERSION --out DIR"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ReproductionError(
            f"{folder / EXPECTED} is damaged ({error}); remedy: bert-pipeline reproduce again"
        ) from None
    recipe = load_recipe(folder / f"{name}.toml")
    _check_sources(folder, recipe)
    recipe = resolve_recipe(recipe)
    made: dict[str, Artifact] = {}
    for kind in kinds_of(recipe):
        if kind == "tokenizer" and (folder / KEPT).exists():
            made[kind] = _copy_tokenizer(folder / KEPT, store / kind / expected[kind]["fingerprint"])
            _assert_same_bytes(made[kind], expected[kind], folder)
            continue
        origin = json.loads(json.dumps(stage_origin(kind, recipe, made)))
        if differing := list(_differences(expected[kind]["origin"], origin)):
            raise ReproductionError(
                f"{kind} would differ from {expected[kind]['fingerprint']}: {'; '.join(differing)}; "
                f"remedy: use the commit, the files and the recipe that {folder}/README.md names"
            )
        made[kind] = make_stage(kind, recipe, made, store / kind / artifact.fingerprint(origin), origin=origin)
        _assert_same_bytes(made[kind], expected[kind], folder)
    return made


def _copy_tokenizer(kept: Path, destination: Path) -> Artifact:
    if not destination.exists():
        draft = destination.with_name(f"{destination.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(kept, draft)
        draft.rename(destination)
    return artifact.load(destination, "tokenizer")


def _check_sources(folder: Path, recipe: Recipe) -> None:
    """Name the files of the corpus that were added, removed or changed. Its fingerprint alone cannot name them."""
    from bert_pipeline.data.corpus.sources import source_files

    listing = folder / SOURCES
    if not listing.exists():
        return
    known = source_files(recipe.corpus.model_copy(update={"sources_file": str(listing.absolute())}))
    if others := sorted(source_files(recipe.corpus).keys() - known.keys()):
        raise ReproductionError(
            f"{recipe.corpus.path}: {len(others)} file(s) are not in {listing}, such as {others[0]}; "
            "remedy: move them away, or set BERT_PIPELINE_DATA to a folder without them"
        )


def _differences(then: Any, now: Any, where: str = "") -> Iterator[str]:
    """Describe each leaf in which two JSON values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted(then.keys() | now.keys()):
            yield from _differences(then.get(name), now.get(name), f"{where}.{name}" if where else name)
    elif then != now:
        yield f"{where} was {json.dumps(then)} and is {json.dumps(now)}"


def _assert_same_bytes(made: Artifact, expected: Mapping[str, Any], folder: Path) -> None:
    if expected["file"] is None:
        return
    path = made.path / expected["file"]
    if (found := cached_digest(path)) != expected["sha256"]:
        raise ReproductionError(
            f"{path}: its sha256 is {found}, expected {expected['sha256']}: {made.kind} has the same origin but other "
            f"contents; remedy: use the packages, the number of cores and the hardware that {folder}/README.md names"
        )
