"""Who built an artifact, where and with which code: recorded, but not part of its fingerprint."""

import getpass
import hashlib
import os
import platform
import shutil
import subprocess
import tomllib
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

PROJECT = "bert-pipeline"
PACKAGE = Path(__file__).parents[1]


def circumstances() -> dict[str, Any]:
    return {
        "by": _user(),
        "host": platform.node(),
        "cores": len(os.sched_getaffinity(0)),  # the threads of training on a CPU; they decide the order of its sums
        "python": platform.python_version(),
        "packages": _packages(),
        **code_of(PACKAGE),
    }


def code_of(package: Path) -> dict[str, str | None]:
    """What identifies the code: in a clone of this project the commit, else the commit that setup.py recorded and the
    digest of the installed wheel.

    `version` is the project's version. A package in any other place, such as a copy in another repository, has none.
    """
    commit, installed = _commit(package), _installed(package)
    return {
        "commit": commit or (_recorded_commit(package) if installed else None),
        "version": installed.version if installed else None,
        "wheel": _wheel_digest(installed) if installed and not commit else None,
    }


@cache
def _packages() -> dict[str, str]:
    """Versions of all installed packages, by name."""
    found = ((each.metadata["Name"], each.version) for each in distributions())
    return dict(sorted((name, version) for name, version in found if name))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id without a name
        return str(os.getuid())


def _commit(package: Path) -> str | None:
    """The commit of this project, with `-dirty` if it has uncommitted changes; None outside a checkout of it.

    The repository that surrounds the package counts only if it is this project's and tracks the package: a virtual
    environment or a copy of the package may lie in any repository.
    """
    root = package.parent
    if not shutil.which("git") or not (root / ".git").exists() or not _is_this_project(root):
        return None
    if _git(root, "ls-files", "--error-unmatch", f"{package.name}/__init__.py") is None:
        return None
    return _git(root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")  # not the nearest tag


def _recorded_commit(package: Path) -> str | None:
    file = package / "COMMIT"
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command; None if it fails. The explicit repository overrides GIT_DIR, which git sets in
    its hooks.
    """
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def _is_this_project(root: Path) -> bool:
    try:
        table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        return table["project"]["name"] == PROJECT
    except (OSError, ValueError, KeyError, TypeError):  # missing, no TOML, or another kind of project
        return False


def _installed(package: Path) -> Distribution | None:
    """The metadata beside the package: of a wheel, or of an editable installation."""
    found = distributions(path=[str(package.parent)])
    return next((each for each in found if each.metadata["Name"] == PROJECT), None)


def _wheel_digest(installed: Distribution) -> str | None:
    """SHA-256 over the names and digests of the packages' files in the wheel's RECORD; None if it has none.

    Not of RECORD itself: pip adds lines to it that differ between machines.
    """
    packages = (installed.read_text("top_level.txt") or "").split()
    files = [each for each in installed.files or () if each.parts[0] in packages]
    lines = sorted(f"{each.as_posix()},{each.hash.mode}={each.hash.value}\n" for each in files if each.hash)
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None
