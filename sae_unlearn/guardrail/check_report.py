"""What `check_guardrail` gives: findings, in sentences."""

from dataclasses import dataclass
from typing import Literal


Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is about, in a word or two.
        status: "ok", "warning" or "problem".
        sentence: what was found, with its value, and the mend if there is something to mend.
    """

    subject: str
    status: Status
    sentence: str


@dataclass(frozen=True)
class CheckReport:
    """What `check_guardrail` found, in the order in which it looked."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem; warnings are not problems."""
        return all(finding.status != "problem" for finding in self.findings)
