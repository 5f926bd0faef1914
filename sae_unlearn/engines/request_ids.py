"""Which requests of an engine belong to the id of an answer: engines add to such an id."""

import re
from collections.abc import Iterable


_SAMPLE = re.compile(r"\d+_(?=.)")  # in front of the id of each sample, if a request asks for several
_END = re.compile(r"-[0-9a-f]{8}")  # vLLM's random end, which makes ids unique
_PART = re.compile(
    r"[-_]\d+|([-_]\d+)?-[0-9a-f]{16,32}-beam-\d+"
)  # which prompt, conversation or turn; or a beam of it
_CHILD = re.compile(r"__child#\d+")  # transformers' forks
_INDEXED = "cmpl-"
"""Ids of vLLM's completions begin so. They alone have the prompt's index even if there is one prompt."""


def vllm_requests(names: Iterable[str], request: str) -> list[str]:
    """Return the names of vLLM's requests that belong to an id: one for each prompt, sample and turn.

    Args:
        names (Iterable[str]): Names inside the engine, such as `0_cmpl-ID-0-1a2b3c4d`.
        request (str): The id of an answer, such as `cmpl-ID`, or a name inside the engine.
    """
    whole: list[str] = []
    plain: list[str] = []
    indexed: list[str] = []
    for name in names:
        forms = _without_additions(name)
        if name == request:
            whole.append(name)
        if request in forms:
            plain.append(name)
        elif any(_rest(form, request, _PART) for form in forms):
            indexed.append(name)
    return whole or ((indexed or plain) if request.startswith(_INDEXED) else (plain or indexed))


def transformers_requests(names: Iterable[str], request: str) -> list[str]:
    """Return the names of transformers' requests that belong to an id: one for each of its sequences.

    Args:
        names (Iterable[str]): Names in continuous batching, such as `ID__child#0`.
        request (str): The id of an answer; those of `/v1/responses` are `resp_ID`.
    """
    wanted = {request, request.removeprefix("resp_")}
    return [name for name in names if name in wanted or any(_rest(name, one, _CHILD) for one in wanted)]


def _without_additions(name: str) -> set[str]:
    """Return the ids which a name may be of: without its random end, and without the number of a sample."""
    found = {name} | ({name[:-9]} if _END.fullmatch(name[-9:]) else set())
    return found | {_SAMPLE.sub("", form, count=1) for form in found if _SAMPLE.match(form)}


def _rest(name: str, request: str, pattern: re.Pattern[str]) -> bool:
    """Return whether a name is the id and then what a pattern matches."""
    return name.startswith(request) and pattern.fullmatch(name, len(request)) is not None
