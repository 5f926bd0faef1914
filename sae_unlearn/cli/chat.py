"""`sae-unlearn chat`."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sae_unlearn.cli.arguments import Parser, add_adapter_arguments, add_model_arguments
from sae_unlearn.errors import UnlearnError
from sae_unlearn.install import install_command


if TYPE_CHECKING:
    from sae_unlearn.playground.session import GateView, Session
    from sae_unlearn.playground.settings import Settings

HELP = "try a guardrail in the terminal: bare and guarded answers, and what the gate sees"
EXAMPLES = """examples:
  sae-unlearn chat google/gemma-2-2b-it forget-biology
  sae-unlearn chat --model demo --adapter sae-unlearn-demo/forget-biology --prompt "What is a cell?"

each line is a prompt of its own. /off and /on switch the guardrail, /action clamp, /threshold 0.5, /dose 2,
/tokens 100, /template off change it while the command runs, /quit ends; nothing of what is typed is kept
"""
SWITCHES = {"on": True, "off": False}
COMMANDS = "/on /off /action clamp|record|refuse /threshold X /dose X /tokens N /template on|off /quit"
SHADE = (213, 94, 0)


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser, positional=True)
    add_adapter_arguments(parser, "folder or Hub id of a guardrail", positional=True)
    chat = parser.group("chat")
    chat.add_argument("--prompt", metavar="TEXT", help="answer this prompt and end")
    chat.add_argument("--max-new-tokens", type=int, default=60, metavar="N", help="tokens of an answer (default: 60)")
    chat.add_argument("--plain", action="store_true", help="leave the tokenizer's chat template out")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.arguments import NO_ADAPTER, hub_of
    from sae_unlearn.cli.inputs import load_model, with_adapter
    from sae_unlearn.errors import UnlearnError
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder
    from sae_unlearn.playground.session import Session
    from sae_unlearn.playground.settings import Settings

    console = _console()
    settings = Settings(max_new_tokens=args.max_new_tokens, chat_template=not args.plain)
    if not args.adapter:
        raise UnlearnError(NO_ADAPTER.format(option="chat"))
    GuardrailFolder.open(args.adapter, **hub_of(args)).artefact()  # report a wrong name before the model is loaded
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    guarded = with_adapter(model, args.adapter, args.adapter_revision, args.adapter_subfolder)
    session = Session(guarded, tokenizer)
    if args.prompt is not None:
        show(console, session, args.prompt, settings)
        return 0
    console.print(f"[dim]{COMMANDS.replace('[', '(')}[/dim]")
    while True:
        try:
            line = console.input("\n[bold]> [/bold]").strip()
        except EOFError:
            return 0
        if line in ("/quit", "/exit"):
            return 0
        try:
            if line.startswith("/"):
                settings = switched(settings, line)
                console.print(f"[dim]{settings}[/dim]")
            elif line:
                show(console, session, line, settings)
        except ValueError as error:
            console.print(str(error), style="red", markup=False)


def next_step(args: argparse.Namespace) -> str:
    """The command to run after this one: none."""
    return ""


def switched(settings: "Settings", line: str) -> "Settings":
    """The settings after a line such as "/dose 2".

    Raises:
        UnlearnError: If the command is unknown, or lacks its value.
    """
    name, _, value = line[1:].partition(" ")
    changes: dict[str, Callable[[str], Any]] = {
        "threshold": float,
        "dose": float,
        "tokens": int,
        "action": str,
        "template": lambda text: SWITCHES[text],
    }
    fields = {"tokens": "max_new_tokens", "template": "chat_template"}
    if name in SWITCHES and not value:
        return replace(settings, enabled=SWITCHES[name])
    if name not in changes:
        raise UnlearnError(f"{line}: expected one of {COMMANDS}.")
    try:
        return replace(settings, **{fields.get(name, name): changes[name](value.strip())})
    except (KeyError, ValueError) as error:
        raise UnlearnError(f"{line}: expected another value. Use {COMMANDS}.") from error


def show(console: Any, session: "Session", prompt: str, settings: "Settings") -> None:
    """Print both answers as they grow, then what the gate saw."""
    from rich.live import Live

    found = None
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        for found in session.answers(prompt, settings):
            live.update(_columns(found.bare, found.guarded, settings.enabled))
    if not console.is_terminal:  # a file gets no new line after the answers
        console.print()
    if found is not None and found.gate is not None:
        _print_gate(console, found.gate)


def _console() -> Any:
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError(f"The chat needs `rich`; run: {install_command('chat')}") from error
    return Console(highlight=False)


def _columns(bare: str, guarded: str, enabled: bool) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    title = "with the guardrail" if enabled else "guardrail off"
    grid.add_row(Panel(Text(_plain(bare)), title="bare"), Panel(Text(_plain(guarded)), title=title))
    return grid


def _print_gate(console: Any, gate: "GateView") -> None:
    from rich.text import Text

    most = max((token.evidence for token in gate.tokens), default=0.0)
    shown = Text()
    for token in gate.tokens:
        share = max(0.0, token.evidence) / most if most > 0 else 0.0
        style = f"on rgb({','.join(str(round(c * share)) for c in SHADE)})" if share > 0.15 else ""
        shown.append(_plain(token.text), style=style)
    console.print(shown)
    word = "[bold red]fires[/]" if gate.fired else "[bold green]does not fire[/]"
    console.print(f"gate {word}: {gate.deciding:.3g}, threshold {gate.threshold:.3g}")


def _plain(text: str) -> str:
    """The text without what a terminal would act on."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
