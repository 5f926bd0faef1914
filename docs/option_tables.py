"""Pages of options, made from the code. `python docs/option_tables.py` writes them.

The pages of the commands and of the options of a fit and of an alignment are made whole. Of the page of guardrails it
makes the table of the config's fields.
"""

import argparse
import dataclasses
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from peft import PeftConfig

from sae_unlearn import SAEGuardrailConfig
from sae_unlearn.cli.arguments import Parser
from sae_unlearn.cli.main import COMMANDS, build_parser
from sae_unlearn.options.alignment import AlignmentOptions
from sae_unlearn.options.field import Option, options_of
from sae_unlearn.options.fit import GuardrailFitConfig


API = Path(__file__).parent / "api"
COMMAND_LINE = API / "command-line.md"
COMMAND_PAGES = API / "commands"
FIT = API / "fit-options.md"
ALIGNMENT = API / "alignment-options.md"
GUARDRAIL = API / "guardrail.md"
FIT_INTRODUCTION = """# Options of a fit

Which options do `fit_guardrail` and `fit_guardrails` take? Each of these by its name, or all of
them in `config=GuardrailFitConfig(...)`; an option given by name takes the place of its value in
`config`. `sae-unlearn fit` has the same options.

::: sae_unlearn.guardrail.GuardrailFitConfig
    options: {members: false}
"""
ALIGNMENT_INTRODUCTION = """# Options of an alignment

Which options does `SAEAlignmentConfig` have in addition to those of `TrainingArguments`? These.
`sae-unlearn train` has some of them, see [its page](commands/train.md); `sae_unlearn.alignment.loss`
has the equations of the [parts of the loss](../methods/alignment.md).
"""
EVERYWHERE = "general"
SHARED = "[Command line](../command-line.md) has the options of all commands, and the exit status."
INTRODUCTION = """# Command line

What can be set on a command line, and under which name? `sae-unlearn COMMAND --help` prints the same.

A command exits with 0 when it is done, 1 when it found a problem, 2 for bad input (one line says
what), and 130 when it was interrupted. Models, SAEs and adapters are Hub ids or folders; `demo`
is the model and the SAE of the demo. The last line names the command to run next.

A JSON or YAML file can hold options, by their names without the dashes; the command line wins:

```yaml
# fit.yaml, for: sae-unlearn fit --config fit.yaml --output forget-biology
model: google/gemma-2-2b-it
sae: google/gemma-scope-2b-pt-res
sae_subfolder: layer_3/width_16k/average_l0_142
forget: [biology.txt]
retain: [other.jsonl]
chat_template: true
num_features: 20
```

The shell completes commands and options if the package `argcomplete` is installed:
`eval "$(register-python-argcomplete sae-unlearn)"`. Progress bars write a line every half a
minute unless a terminal shows them.
"""


def command_line_page() -> str:
    """The page of the command line: what all commands share, and a table of them."""
    rows = [f"| [`{name}`](commands/{name}.md) | {_cell(_sentence(module))} |" for name, module in COMMANDS.items()]
    table = "\n".join(["| command | |", "|---|---|", *rows])
    general = _table(_rows(_parsers()["demo"], EVERYWHERE))
    parts = [INTRODUCTION, "## Commands", table, "## Of all commands", general]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def command_pages() -> dict[Path, str]:
    """The page of each command, by its path."""
    found = {}
    for name, module in COMMANDS.items():
        parts = [f"# sae-unlearn {name}", *_about(module), *_tables(_parsers()[name]), SHARED]
        found[COMMAND_PAGES / f"{name}.md"] = "\n\n".join(part.strip("\n") for part in parts) + "\n"
    return found


def _parsers() -> dict[str, Parser]:
    actions = build_parser()._actions
    return next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))


def fit_page() -> str:
    """The page of `GuardrailFitConfig`."""
    return _options_page(FIT_INTRODUCTION, GuardrailFitConfig)


def alignment_page() -> str:
    """The page of the own options of `SAEAlignmentConfig`."""
    return _options_page(ALIGNMENT_INTRODUCTION, AlignmentOptions)


def _options_page(introduction: str, options: type) -> str:
    parts: dict[str, list[str]] = {}
    for each in options_of(options):
        row = f"| `{each.name}` | {_values(each)} | {_cell(each.sentence)} |"
        parts.setdefault(each.group, []).append(row)
    tables = ["\n".join([f"| {group} | values | |", "|---|---|---|", *rows]) for group, rows in parts.items()]
    return "\n\n".join([introduction.strip("\n"), *tables]) + "\n"


def guardrail_page() -> str:
    """The page of guardrails, its table of the config's fields made from their help texts."""
    before, heading, rest = GUARDRAIL.read_text(encoding="utf-8").partition("### Its fields\n")
    after = rest[rest.index("\nand what every") :]
    inherited = {each.name for each in dataclasses.fields(PeftConfig)}
    rows = ["", "| field | default | |", "|---|---|---|"]
    for each in dataclasses.fields(SAEGuardrailConfig):
        if each.name in inherited:
            continue
        is_group = dataclasses.is_dataclass(each.default)
        rows.append(_field(each.name, "" if is_group else f"`{each.default!r}`", each))
        if dataclasses.is_dataclass(each.default):
            inside = dataclasses.fields(each.default)
            rows += [_field(f"{each.name}.{part.name}", f"`{part.default!r}`", part) for part in inside]
    return before + heading + "\n".join(rows) + "\n" + after


def _field(name: str, default: str, each: "dataclasses.Field[Any]") -> str:
    return f"| `{name}` | {default} | {_cell(each.metadata['help'])} |"


def _about(module: ModuleType) -> list[str]:
    """Help, examples and notes of a command."""
    notes = re.split(r"\n\n", module.EXAMPLES.strip("\n"))
    examples = [re.sub(r"^  ", "", line) for line in notes[0].splitlines()[1:]]
    sentences = [" ".join(note.split()) for note in notes[1:]]
    sentences = [re.sub(r"(accelerate launch .*)", r"`\1`", sentence) for sentence in sentences]
    told = [f"{sentence[0].upper()}{sentence[1:].rstrip('.')}." for sentence in sentences]
    return [_sentence(module), "\n".join(["```bash", *examples, "```"]), *told]


def _sentence(module: ModuleType) -> str:
    return f"{module.HELP[0].upper()}{module.HELP[1:]}."


def _tables(parser: Parser) -> list[str]:
    found = []
    for group in parser._action_groups:
        rows = _rows(parser, group.title)
        if rows and group.title not in (EVERYWHERE, "options"):
            found.append(_table(rows, str(group.title)))
    return found


def _rows(parser: Parser, title: str | None) -> list[str]:
    group = next(group for group in parser._action_groups if group.title == title)
    return [_row(action) for action in group._group_actions if action.dest != "help"]


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings or [str(action.metavar)])
    choices = f" ({', '.join(f'`{choice}`' for choice in action.choices)})" if action.choices else ""
    needed = "; required" if action.required and action.option_strings else ""
    return f"| {names} | {_cell(str(action.help) % vars(action))}{choices}{needed} |"


def _table(rows: list[str], title: str = "option") -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *rows])


def _values(each: Option) -> str:
    if each.choices:
        return ", ".join(f"`{choice!r}`" for choice in each.choices)
    return f"`list[{each.kind.__name__}]`" if each.several else f"`{each.kind.__name__}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    COMMAND_LINE.write_text(command_line_page(), encoding="utf-8")
    COMMAND_PAGES.mkdir(exist_ok=True)
    for path in COMMAND_PAGES.glob("*.md"):
        path.unlink()
    for path, page in command_pages().items():
        path.write_text(page, encoding="utf-8")
    FIT.write_text(fit_page(), encoding="utf-8")
    ALIGNMENT.write_text(alignment_page(), encoding="utf-8")
    GUARDRAIL.write_text(guardrail_page(), encoding="utf-8")
