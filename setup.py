"""Put the commit into wheel and source distribution; pyproject.toml has everything else."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

COMMIT = Path("bert_pipeline", "COMMIT")


def write_commit(folder: Path) -> None:
    """Into a copy of the sources. In a source distribution, which has no history, the file exists already."""
    if Path(".git").exists():
        described = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]  # not the nearest tag
        (folder / COMMIT).write_text(subprocess.check_output(described, text=True), encoding="utf-8")


class BuildPackages(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            write_commit(Path(self.build_lib))


class BuildSource(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir))


setup(cmdclass={"build_py": BuildPackages, "sdist": BuildSource})
