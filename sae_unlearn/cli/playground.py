"""`sae-unlearn playground`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sae_unlearn.checks import check_integer
from sae_unlearn.cli.arguments import (
    NO_ADAPTER,
    Parser,
    add_adapter_arguments,
    add_labels_argument,
    add_model_arguments,
)
from sae_unlearn.cli.data_sets import add_column_argument
from sae_unlearn.cli.show import labels_of
from sae_unlearn.errors import UnlearnError


if TYPE_CHECKING:
    from sae_unlearn.playground.session import Session

HELP = "try a guardrail in a browser: bare and guarded answers side by side, and what the gate sees"
EXAMPLES = """examples:
  sae-unlearn playground google/gemma-2-2b-it forget-biology
  sae-unlearn playground --model demo --adapter sae-unlearn-demo/forget-biology --examples prompts.txt
  sae-unlearn playground --model google/gemma-2-2b-it --adapter me/forget-biology --space my-space

it serves on this machine only, unless --host says otherwise; nothing of what is typed is kept
"""


PROMPT_TOKENS = 16
"""Tokens of a stored row that are shown as a prompt."""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser, positional=True)
    add_adapter_arguments(parser, "folder or Hub id of a guardrail", positional=True)
    add_labels_argument(parser)
    add_column_argument(parser)
    page = parser.group("page")
    page.add_argument("--examples", metavar="FILE", help="prompts to click on: a .txt, .json, .jsonl or .csv file")
    page.add_argument("--title", metavar="TEXT", help="heading of the page (default: the guardrail's name)")
    page.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to serve on (default: 127.0.0.1)")
    page.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860 on)")
    page.add_argument("--space", metavar="FOLDER", help="write a Hugging Face Space that serves it, and serve nothing")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.arguments import hub_of
    from sae_unlearn.cli.inputs import load_model, read_texts, with_adapter
    from sae_unlearn.cli.outputs import output_folder
    from sae_unlearn.guardrail.storage.folder import GuardrailFolder

    if not args.adapter:
        raise UnlearnError(NO_ADAPTER.format(option="playground"))
    examples = (
        [str(text) for text in read_texts(args.examples, args.text_column)]
        if args.examples
        else _demo_prompts(args.model)
    )
    title = args.title or f"Guardrail {Path(args.adapter).name}"
    folder = GuardrailFolder.open(args.adapter, **hub_of(args))
    folder.artefact()  # report a wrong name or a missing file before anything is written or loaded
    labels = labels_of(args, folder)
    if args.space is not None:
        from sae_unlearn.playground.space import write_space

        target = output_folder(args.space, "--space")
        pinned = {name: getattr(args, name) for name in ("model_revision", "adapter_revision", "adapter_subfolder")}
        write_space(target, args.model, args.adapter, title, examples, labels, **pinned)
        print(f"Written to {target}: app.py, requirements.txt and README.md; {_to_do(target)}.")
        return 0
    from sae_unlearn.playground.page import build_page, gradio, serve
    from sae_unlearn.playground.session import Session

    gradio()
    _check_address(args.host, args.port)
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    guarded = with_adapter(model, args.adapter, args.adapter_revision, args.adapter_subfolder)
    session = Session(guarded, tokenizer)
    page = build_page(session, title, examples or _stored_prompts(session), labels)
    serve(page, server_name=args.host, server_port=args.port, share=False)
    return 0


def next_step(args: argparse.Namespace) -> str:
    """The command to run after this one: none."""
    return ""


def _check_address(host: str, port: int | None) -> None:
    """Raise if the page cannot be served there, before the model is loaded.

    Raises:
        UnlearnError: If the address is not one of this machine, or the port is out of range or taken.
    """
    import socket

    if port is not None:
        check_integer("--port", port, 1, 65535)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        given = f"--host {host}" if port is None or isinstance(error, socket.gaierror) else f"--port {port}"
        raise UnlearnError(f"{given}: cannot serve there ({error.strerror or error}). Pass another.") from error


def _to_do(space: Path) -> str:
    """Return in words how the written files become a Space."""
    unknown = "fill in" in (space / "requirements.txt").read_text(encoding="utf-8")
    return ("fill in the address in requirements.txt, and " if unknown else "") + "upload them to a Space"


def _stored_prompts(session: "Session") -> list[str]:
    """Beginnings of the rows that the guardrail stores (`--store-probe`), half of its topic."""
    from sae_unlearn.guardrail.check.probe import probe_rows

    rows = probe_rows(session.config, len(session.tokenizer))
    found = (session.tokenizer.decode(row.ids[:PROMPT_TOKENS], skip_special_tokens=True).strip() for row in rows)
    return [text for text in found if text]


def _demo_prompts(model: str) -> list[str]:
    """Prompts of the demo, half of its topic, for the demo's model; none for any other."""
    from sae_unlearn.cli.inputs import DEMO
    from sae_unlearn.demo import load_demo_texts

    return [text for side in load_demo_texts().prompts.values() for text in side[:3]] if model == DEMO else []
