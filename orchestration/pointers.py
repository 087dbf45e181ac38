"""The IO manager: assets pass a fingerprint in a small file; no data goes through Dagster."""

import tempfile
from pathlib import Path

import dagster as dg

from bert_pipeline.store import remote
from bert_pipeline.store.artifact import Artifact, ArtifactError


class ArtifactIOManager(dg.ConfigurableIOManager):
    """`pointers/<asset>/<partition>` holds the fingerprint of the partition's latest artifact in `store`."""

    store: str
    pointers: str

    def handle_output(self, context: dg.OutputContext, made: Artifact) -> None:
        pointer = self._pointer(made.kind, context.partition_key)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=pointer.parent, prefix=".", delete=False) as draft:
            draft.write(made.fingerprint)
        Path(draft.name).replace(pointer)

    def load_input(self, context: dg.InputContext) -> Artifact:
        return self.artifact(context.asset_key.to_user_string(), context.partition_key)

    def artifact(self, kind: str, partition: str) -> Artifact:
        pointer = self._pointer(kind, partition)
        try:
            fingerprint = pointer.read_text()
        except FileNotFoundError:
            raise ArtifactError(
                f"recipe {partition} has no {kind} yet ({pointer} is missing); "
                f"remedy: dg launch --job whole_graph --partition {partition}"
            ) from None
        return remote.load(Path(self.store), kind, fingerprint)

    def _pointer(self, kind: str, partition: str) -> Path:
        return Path(self.pointers, kind, partition)
