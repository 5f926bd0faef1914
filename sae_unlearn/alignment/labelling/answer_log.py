"""What a model answered, written down as it comes, so that a run that was cut goes on where it stopped.

A file of JSON lines: the first a header with the settings that the answers hang on, each other an `Asked`.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_unlearn.errors import AlignmentError


FORMAT = 1


Question = tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """One question about one entity, and what the model made of it.

    Attributes:
        entity, entity_type, attribute: what was asked about.
        prompt: the question as text, without a chat template.
        accepted: the accepted answers.
        answers: the sampled continuations; each ends once nothing later could change whether it matches.
        matches: how many of them match.
    """

    entity: str
    entity_type: str
    attribute: str
    prompt: str
    accepted: tuple[str, ...]
    answers: tuple[str, ...]
    matches: int

    @property
    def question(self) -> Question:
        """What makes it the same question again."""
        return (self.entity, self.entity_type, self.attribute, self.prompt, self.accepted)

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Asked":
        """From a parsed line.

        Raises:
            TypeError: other fields than an `Asked` has.
        """
        asked = cls(**values)
        object.__setattr__(asked, "accepted", tuple(asked.accepted))
        object.__setattr__(asked, "answers", tuple(asked.answers))
        return asked


class AnswerLog:
    """The answers so far, by question; kept in a file if there is a path.

    Opening a file that a killed run has left takes off a last line that is not complete.

    Args:
        path: the file, made if it is not there; None keeps nothing.
        settings: what the answers hang on, as JSON values.

    Raises:
        AlignmentError: the file was written by another model or with other settings, or is no such file.
    """

    def __init__(self, path: str | Path | None, settings: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._answered: dict[Question, Asked] = {}
        if self._path is None:
            return
        header = {"format": FORMAT} | settings
        if self._path.exists() and self._read(self._path, header):
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")

    def __contains__(self, question: Question) -> bool:
        return question in self._answered

    def __getitem__(self, question: Question) -> Asked:
        return self._answered[question]

    @property
    def answers(self) -> list[Asked]:
        """All answers so far."""
        return list(self._answered.values())

    def know(self, answers: Iterable[Asked]) -> None:
        """Note answers that are written down already."""
        self._answered |= {asked.question: asked for asked in answers}

    def add(self, answers: Iterable[Asked]) -> None:
        """Note answers, and write them before returning."""
        answers = list(answers)
        self.know(answers)
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8", newline="\n") as file:
                file.write("".join(asked.to_line() for asked in answers))

    def _read(self, path: Path, header: dict[str, Any]) -> bool:
        """Read the file; False if not even its header was finished."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            self._check_torn_header(data)
            return False
        lines = whole.decode("utf-8", errors="replace").split("\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line)
                if number == 1:
                    self._check_header(values, header)
                    continue
                asked = Asked.from_dict(values)
            except (ValueError, TypeError) as error:
                if isinstance(error, AlignmentError):
                    raise
                raise AlignmentError(
                    f"Line {number} of the cache {self._path} is not an answer ({error}); remove the line or the file."
                ) from error
            self._answered[asked.question] = asked
        if len(whole) < len(data):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        return True

    def _check_torn_header(self, data: bytes) -> None:
        # Not to be written over unless it can be no other file than one of ours
        if data and not (b'{"format": ').startswith(data[:11]):
            raise AlignmentError(f"The cache {self._path} is not a file of answers; name another one.")

    def _check_header(self, found: Any, header: dict[str, Any]) -> None:
        if not isinstance(found, dict) or "format" not in found:
            raise AlignmentError(f"The cache {self._path} is not a file of answers; name another one.")
        names = [name for name in found | header if found.get(name) != header.get(name)]
        if names:
            told = ", ".join(f"{name}={found.get(name)!r} and not {header.get(name)!r}" for name in names)
            raise AlignmentError(
                f"The answers in the cache {self._path} were given under other settings: {told}; name another file."
            )
