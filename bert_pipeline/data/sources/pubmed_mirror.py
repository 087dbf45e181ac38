MANIFEST = "files.jsonl"


def read_manifest(folder):
    return {}
