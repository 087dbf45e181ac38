"""`bert-pipeline push` and `pull`: the remote tier by hand, for what a run could not send, and for another machine."""

import argparse
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bert_pipeline.settings import store
from bert_pipeline.stages import EVALUATION, STAGES
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import RECORD, ArtifactError

if TYPE_CHECKING:
    from bert_pipeline.store.remote import Remote

log = logging.getLogger(__name__)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both to a parser's commands."""
    push = commands.add_parser("push", help="send artifacts to the remote store (BERT_PIPELINE_REMOTE)")
    push.add_argument("directories", type=Path, nargs="*", metavar="DIR", help="(default: all that stand)")
    push.add_argument("--json", action="store_true", help="print the facts of each")
    push.set_defaults(run=_push)

    pull = commands.add_parser("pull", help="bring an artifact from the remote store (BERT_PIPELINE_REMOTE)")
    pull.add_argument("kind", metavar="KIND", help="as in masked_dataset")
    pull.add_argument("fingerprint", metavar="FINGERPRINT", help="its 16 digits")
    pull.add_argument("--out", type=Path, metavar="DIR", help="where to (default: its place in the store)")
    pull.add_argument("--json", action="store_true", help="print its record")
    pull.set_defaults(run=_pull)


def _push(options: argparse.Namespace) -> None:
    """Raises RuntimeError after all were tried, where one could not be sent."""
    remote, failed, pushed = _remote(), 0, []
    for directory in options.directories or _standing(store()):
        try:
            pushed.append(remote.push(artifact.load(directory)))
        except (RuntimeError, ArtifactError, OSError) as error:
            log.error("%s", error)
            failed += 1
    if options.json:
        print(json.dumps(pushed))
    else:
        sent = sum(facts["sent_bytes"] for facts in pushed)
        print(f"{len(pushed)} artifacts are in {remote.url}, {sent:,} bytes were sent")
    if failed:
        raise RuntimeError(f"{failed} of {failed + len(pushed)} artifacts were not sent; remedy: see above")


def _pull(options: argparse.Namespace) -> None:
    from filelock import FileLock

    if not _is_artifact(options.kind, options.fingerprint):
        raise ValueError(
            f"{options.kind} {options.fingerprint} names no artifact; remedy: a kind, as in masked_dataset, and the 16 "
            "digits of its fingerprint"
        )
    remote = _remote()
    destination = options.out or store() / options.kind / options.fingerprint
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{destination}.lock"):
        if not destination.exists() and not remote.pull(options.kind, options.fingerprint, destination):
            raise RuntimeError(
                f"{remote.url} has no {options.kind} {options.fingerprint}; remedy: `bert-pipeline push` where it "
                "stands, or build it"
            )
    made = artifact.load(destination, options.kind)
    if made.fingerprint != options.fingerprint:
        raise ArtifactError(f"{destination} holds another {made.kind}, {made.fingerprint}; remedy: another --out")
    print(json.dumps(dict(made.record)) if options.json else f"{made.kind} {made.fingerprint} in {made.path}")


def _standing(store: Path) -> list[Path]:
    """The finished artifacts of a store; the kinds of evaluations have two parts."""
    directories = sorted(record.parent for depth in ("*/*", "*/*/*") for record in store.glob(f"{depth}/{RECORD}"))
    return [path for path in directories if _is_artifact(path.parent.relative_to(store).as_posix(), path.name)]


def _is_artifact(kind: str, fingerprint: str) -> bool:
    is_kind = kind in STAGES or re.fullmatch(re.escape(EVALUATION) + r"\w[\w.-]*", kind)
    return bool(is_kind and re.fullmatch("[0-9a-f]{16}", fingerprint))


def _remote() -> "Remote":
    from bert_pipeline.store.remote import VARIABLE, from_environment

    remote = from_environment()
    if remote is None:
        raise ValueError(f"{VARIABLE} is not set; remedy: name the remote store, as s3://bucket/prefix")
    return remote
