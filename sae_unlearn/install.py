"""How to install an extra of this package, which is on no registry."""

import json
from importlib.metadata import PackageNotFoundError, distribution


FROM_CHECKOUT = 'pip install ".[{extra}]"'
"""Works in a checkout of the repository. By the package's name it would not: that name is not registered."""

FROM_GIT = 'pip install "sae-unlearn[{extra}] @ git+{address}"'
"""Works anywhere, for who has the repository's address."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra, and where to run it.

    Args:
        extra (`str`): An extra of `setup.py`, such as "eval".
    """
    address = _git_address()
    if address is not None:
        return FROM_GIT.format(extra=extra, address=address)
    return f"{FROM_CHECKOUT.format(extra=extra)} in a checkout of sae_unlearn"


def _git_address() -> str | None:
    """The git address and commit that this installation came from (PEP 610); None for a checkout."""
    try:
        origin = json.loads(distribution("sae-unlearn").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    vcs = origin.get("vcs_info") if isinstance(origin, dict) else None
    if not isinstance(vcs, dict) or vcs.get("vcs") != "git":
        return None
    return f"{origin.get('url')}@{vcs.get('commit_id')}"
