"""The transcript of a guarded server: commands, and what they printed."""

import json
import textwrap
from typing import Any

from .results import read_json


WIDTH = 96


def _entries() -> list[dict[str, str]]:
    found: list[dict[str, str]] = read_json("serving_transcript.json")["entries"]
    return found


def session(*titles: str) -> str:
    """The commands of these titles, each under its title; long lines are folded."""
    by_title = {entry["title"]: entry for entry in _entries()}
    return "\n\n".join(_block(by_title[title]) for title in titles)


def everything() -> str:
    """All commands in their order."""
    return "\n\n".join(map(_block, _entries()))


def says(title: str, *parts: str) -> bool:
    """Whether the output of a command contains all of these texts."""
    (output,) = [entry["output"] for entry in _entries() if entry["title"] == title]
    return all(part in output for part in parts)


def _block(entry: dict[str, str]) -> str:
    lines: list[str] = []
    for line in [f"$ {entry['command']}", *map(_without_null, entry["output"].splitlines())]:
        lines += textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False) or [""]
    return f"{entry['title']}:\n\n```console\n" + "\n".join(lines) + "\n```"


def _without_null(line: str) -> str:
    """Return a line; of JSON, without the fields that are null."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return line
    return json.dumps(_kept(found), ensure_ascii=False)


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _kept(each) for name, each in value.items() if each is not None}
    return [_kept(each) for each in value] if isinstance(value, list) else value


def version() -> Any:
    """Version of vLLM."""
    return read_json("serving_transcript.json")["vllm"]
