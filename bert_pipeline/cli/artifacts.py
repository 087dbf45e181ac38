"""`push`, `pull` and `rebuild`: copy artifacts to and from the remote store, and rebuild a model.

`push` sends what a run could not send; `pull` brings artifacts to another machine.
"""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bert_pipeline.cli.options import ARTIFACTS, MODELS
from bert_pipeline.cli.output import show, show_json

if TYPE_CHECKING:
    from bert_pipeline.store.remote import Remote

log = logging.getLogger(__name__)


def add(app: typer.Typer) -> None:
    app.command(rich_help_panel=ARTIFACTS)(push)
    app.command(rich_help_panel=ARTIFACTS)(pull)
    app.command(rich_help_panel=MODELS)(rebuild)


def push(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="Artifacts.", show_default="all of the local store")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts of each artifact as JSON.")] = False,
) -> None:
    """Copy artifacts to the remote store (BERT_PIPELINE_REMOTE).

    If one cannot be sent, the others are sent anyway and the exit code is 1.
    """
    from bert_pipeline.settings import store
    from bert_pipeline.store import artifact
    from bert_pipeline.store.artifact import ArtifactError

    remote, failed, pushed = _remote(), 0, []
    for directory in directories or _local_artifacts(store()):
        try:
            pushed.append(remote.push(artifact.load(directory)))
        except (RuntimeError, ArtifactError, OSError) as error:
            log.error("%s", error)
            failed += 1
    if as_json:
        show_json(pushed)
    else:
        sent = sum(facts["sent_bytes"] for facts in pushed)
        show(f"{len(pushed)} artifacts are in {remote.url}, {sent:,} bytes were sent")
    if failed:
        raise RuntimeError(f"{failed} of {failed + len(pushed)} artifacts were not sent; remedy: see above")


def pull(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Kind of the artifact, as masked_dataset.")],
    fingerprint: Annotated[str, typer.Argument(metavar="FINGERPRINT", help="Its 16 hexadecimal digits.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory to copy to.", show_default="its place in the local store"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the artifact's record as JSON.")] = False,
) -> None:
    """Copy an artifact from the remote store (BERT_PIPELINE_REMOTE)."""
    from filelock import FileLock

    from bert_pipeline.settings import store
    from bert_pipeline.store import artifact
    from bert_pipeline.store.artifact import ArtifactError

    if not _is_artifact(kind, fingerprint):
        raise ValueError(
            f"{kind} {fingerprint} names no artifact; remedy: a kind, as masked_dataset, and the 16 digits of its "
            "fingerprint"
        )
    remote = _remote()
    destination = out or store() / kind / fingerprint
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{destination}.lock"):
        if not destination.exists() and not remote.pull(kind, fingerprint, destination):
            raise RuntimeError(
                f"{remote.url} has no {kind} {fingerprint}; remedy: `bert-pipeline push` on a machine that has it, or "
                "build it"
            )
    pulled = artifact.load(destination, kind)
    if pulled.fingerprint != fingerprint:
        raise ArtifactError(f"{destination} holds another {kind}, {pulled.fingerprint}; remedy: another --out")
    if as_json:
        show_json(dict(pulled.record))
    else:
        show(f"{pulled.kind} {pulled.fingerprint} in {pulled.path}")


def rebuild(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Directory that `bert-pipeline reproduce` wrote.")],
) -> None:
    """Rebuild a registered model from what `reproduce` wrote, and verify it bit for bit.

    The artifacts are built in BERT_PIPELINE_HOME.
    """
    from bert_pipeline.reproduction import rebuild
    from bert_pipeline.settings import store

    for kind, made in rebuild(folder, store()).items():
        show(f"{kind} {made.fingerprint} in {made.path}")
    show("bit for bit what it was")


def _local_artifacts(store: Path) -> list[Path]:
    """The finished artifacts of a store; kinds of evaluations have two parts, `evaluation/TASK`."""
    from bert_pipeline.store.artifact import RECORD

    directories = sorted(record.parent for depth in ("*/*", "*/*/*") for record in store.glob(f"{depth}/{RECORD}"))
    return [path for path in directories if _is_artifact(path.parent.relative_to(store).as_posix(), path.name)]


def _is_artifact(kind: str, fingerprint: str) -> bool:
    from bert_pipeline.stages import EVALUATION, STAGES
    from bert_pipeline.study import KIND

    is_kind = kind in (*STAGES, KIND) or re.fullmatch(re.escape(EVALUATION) + r"\w[\w.-]*", kind)
    return bool(is_kind and re.fullmatch("[0-9a-f]{16}", fingerprint))


def _remote() -> "Remote":
    from bert_pipeline.store.remote import VARIABLE, from_environment

    remote = from_environment()
    if remote is None:
        raise ValueError(f"{VARIABLE} is not set; remedy: set it to the remote store, as s3://bucket/prefix")
    return remote
