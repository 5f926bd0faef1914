"""The two parts of a prompt: what is asked, and the cue behind it that calls for the answer."""

import re


_CUE = re.compile(r"\n[^\n:]{1,40}:\s*$")

END_OF_SENTENCE = "The unfinished sentence above ends with:"
"""The cue that stands behind a sentence's beginning once something else has come between."""


def split_cue(prompt: str) -> tuple[str, str]:
    """ "Question: ...\\nAnswer:" gives what is before the last line, and "Answer:"; a sentence's beginning has no cue,
    and the second part is empty."""
    found = _CUE.search(prompt)
    if found is None or not prompt[: found.start()].strip():
        return prompt, ""
    return prompt[: found.start()], prompt[found.start() :].strip()


def with_cue(stem: str, cue: str) -> str:
    """The prompt that `split_cue` divided."""
    return f"{stem}\n{cue}" if cue else stem


def unfinished(stem: str, cue: str) -> str:
    """The stem as a text that something else may follow: a sentence's beginning is left with three dots."""
    return stem if cue else f"{stem} ..."
