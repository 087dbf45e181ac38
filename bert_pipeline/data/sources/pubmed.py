def read_pubmed(name, path, on_bytes=None):
    return iter(())


def pubmed_files(folder):
    return {}
