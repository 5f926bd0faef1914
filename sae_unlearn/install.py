"""The command that installs an extra of this package, which is not on a package registry."""

import json
from importlib.metadata import PackageNotFoundError, distribution


FROM_CHECKOUT = 'pip install ".[{extra}]"'
"""Command for a checkout of the repository. The package's name alone is not registered anywhere."""

FROM_GIT = 'pip install "sae-unlearn[{extra}] @ git+{address}"'
"""Command for an installation from git; works in any folder."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra, and where to run it.

    Args:
        extra (str): An extra of the package, such as "eval".
    """
    address = _git_address()
    if address is not None:
        return FROM_GIT.format(extra=extra, address=address)
    return f"{FROM_CHECKOUT.format(extra=extra)} in a checkout of sae_unlearn"


def install_requirement(extra: str) -> str:
    """Return the line of a requirements file for this package with an extra.

    Of a checkout the address is not known; the line then says what to fill in.

    Args:
        extra (str): An extra of the package, such as "playground".
    """
    address = _git_address()
    if address is not None:
        return f"sae-unlearn[{extra}] @ git+{address}"
    return f"sae-unlearn[{extra}] @ git+https://YOUR-GIT-HOST/sae_unlearn  # fill in the address of the repository"


def _git_address() -> str | None:
    """Return the git address and commit of this installation (PEP 610); None for a checkout."""
    try:
        origin = json.loads(distribution("sae-unlearn").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    vcs = origin.get("vcs_info") if isinstance(origin, dict) else None
    if not isinstance(vcs, dict) or vcs.get("vcs") != "git":
        return None
    return f"{origin.get('url')}@{vcs.get('commit_id')}"
