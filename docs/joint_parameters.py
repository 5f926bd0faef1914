"""Extension of griffe: `forget, retain: texts` in a docstring describes two parameters.

Each has its own type and default. Griffe takes such a name for one parameter that the signature does not have, and
would call it required.
"""

import re
from typing import Any

import griffe


SECTIONS = ("Args:", "Attributes:")
JOINT = re.compile(r"( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+)(: .*)")


class JointParameters(griffe.Extension):
    """Gives each of the names its description."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = apart(obj.docstring.value)


def apart(docstring: str) -> str:
    """The docstring with the names of its sections one by one."""
    lines, found, inside = docstring.split("\n"), [], False
    while lines:
        line = lines.pop(0)
        if line.strip() and not line.startswith(" "):
            inside = line.strip() in SECTIONS
        match = JOINT.fullmatch(line) if inside else None
        if match is None:
            found.append(line)
            continue
        indent, names, said = match.groups()
        rest = []
        while lines and (not lines[0].strip() or lines[0].startswith(indent + " ")):
            rest.append(lines.pop(0))
        for name in names.split(", "):
            found += [f"{indent}{name}{said}", *rest]
    return "\n".join(found)
