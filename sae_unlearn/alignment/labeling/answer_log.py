"""Log of a model's answers, written as they come, so that an interrupted run can resume.

A file of JSON lines: the first is a header with the settings that determine the answers, each other line an `Asked`.
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
    """One question about one entity, with the model's answers.

    Attributes:
        entity, entity_type, attribute (str): Subject of the question.
        prompt (str): The question as text, without a chat template.
        accepted (tuple of str): The accepted answers.
        answers (tuple of str): The sampled continuations. Each ends when later text could not change its match.
        matches (int): Number of answers that match.
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
        """Key by which questions are equal."""
        return (self.entity, self.entity_type, self.attribute, self.prompt, self.accepted)

    def to_line(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Asked":
        """Return the question from a parsed line.

        Raises:
            TypeError: If the fields are not those of an `Asked`.
        """
        asked = cls(**values)
        object.__setattr__(asked, "accepted", tuple(asked.accepted))
        object.__setattr__(asked, "answers", tuple(asked.answers))
        return asked


class AnswerLog:
    """Answers by question, kept in a file if a path is given.

    Opening a file of a killed run removes an incomplete last line.

    Args:
        path (str or Path, *optional*): The file, created if it does not exist. None keeps no file.
        settings (dict): Settings that determine the answers, as JSON values.

    Raises:
        AlignmentError: If the file was written by another model or with other settings, or is not such a file.
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
        """Add answers that are already in a file."""
        self._answered |= {asked.question: asked for asked in answers}

    def add(self, answers: Iterable[Asked]) -> None:
        """Add answers, and write them before returning."""
        answers = list(answers)
        self.know(answers)
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8", newline="\n") as file:
                file.write("".join(asked.to_line() for asked in answers))

    def _read(self, path: Path, header: dict[str, Any]) -> bool:
        """Read the file. Return False if not even its header was complete."""
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
                    f"cache={str(self._path)!r}: expected an answer in line {number}, got {error!r}. "
                    "Remove the line or the file."
                ) from error
            self._answered[asked.question] = asked
        if len(whole) < len(data):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        return True

    def _check_torn_header(self, data: bytes) -> None:
        # Overwritten only if it cannot be a file of another program
        if data and not (b'{"format": ').startswith(data[:11]):
            raise AlignmentError(f"cache={str(self._path)!r}: expected a file of answers. Pass another path.")

    def _check_header(self, found: Any, header: dict[str, Any]) -> None:
        if not isinstance(found, dict) or "format" not in found:
            raise AlignmentError(f"cache={str(self._path)!r}: expected a file of answers. Pass another path.")
        names = [name for name in found | header if found.get(name) != header.get(name)]
        if names:
            differing = ", ".join(f"{name}={found.get(name)!r} and not {header.get(name)!r}" for name in names)
            raise AlignmentError(
                f"cache={str(self._path)!r}: expected answers under the same settings, got {differing}. "
                "Pass another path."
            )
