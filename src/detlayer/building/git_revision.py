"""Read the revision and remote of a project from git."""

from __future__ import annotations

import re
import subprocess

from detlayer.errors import ConfigError, printable

REVISION = "org.opencontainers.image.revision"
SOURCE = "org.opencontainers.image.source"
_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")


def describe(directory: str) -> dict[str, str]:
    """Return the revision and source annotations (image-spec annotations.md); raises ConfigError if git fails.

    Credentials in the URL of the remote are removed; a project without a remote has no source.
    """
    status, revision = _git(directory, "rev-parse", "--verify", "HEAD")
    if status or not revision:
        raise ConfigError(
            "git-missing",
            f"{printable(directory or '.')} is not a git checkout with a commit",
            "set git = false, or commit first",
        )
    status, url = _git(directory, "config", "--get", "remote.origin.url")
    if status not in (0, 1):  # 1: there is no remote
        raise ConfigError(
            "git-missing",
            f"git can't read the configuration of {printable(directory or '.')}",
            "run `git config --get remote.origin.url`",
        )
    source = _CREDENTIALS.sub("", url)
    return {REVISION: revision, **({SOURCE: source} if source else {})}


def _git(directory: str, *arguments: str) -> tuple[int, str]:
    """Run git; return its exit status, and its output if it succeeds."""
    command = ["git", "-C", directory or ".", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise ConfigError("git-missing", f"can't start git: {error.strerror}", "install git") from error
    return done.returncode, done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""
