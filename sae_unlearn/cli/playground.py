"""`sae-unlearn playground`."""

import argparse
from pathlib import Path

from sae_unlearn.cli.arguments import NO_ADAPTER, Parser, add_adapter_arguments, add_model_arguments


HELP = "try a guardrail in a browser: bare and guarded answers side by side, and what the gate sees"
EXAMPLES = """examples:
  sae-unlearn playground google/gemma-2-2b-it forget-biology
  sae-unlearn playground --model demo --adapter sae-unlearn-demo/guardrail --examples prompts.txt
  sae-unlearn playground --model google/gemma-2-2b-it --adapter me/forget-biology --space my-space

it serves on this machine only, unless --host says otherwise; nothing of what is typed is kept
"""


def add_arguments(parser: Parser) -> None:
    add_model_arguments(parser, positional=True)
    add_adapter_arguments(parser, "folder or Hub id of a guardrail", positional=True)
    page = parser.group("page")
    page.add_argument("--examples", metavar="FILE", help="prompts to click on: a .txt, .json, .jsonl or .csv file")
    page.add_argument("--title", metavar="TEXT", help="heading of the page (default: the guardrail's name)")
    page.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to serve on (default: 127.0.0.1)")
    page.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860 on)")
    page.add_argument("--space", metavar="FOLDER", help="write a Hugging Face Space that serves it, and serve nothing")


def run(args: argparse.Namespace) -> int:
    from sae_unlearn.cli.inputs import load_model, output_folder, read_texts, with_adapter

    examples = [str(text) for text in read_texts(args.examples)] if args.examples else []
    title = args.title or f"Guardrail {Path(args.adapter).name}"
    if args.space:
        from sae_unlearn.playground.space import write_space

        folder = output_folder(args.space)
        write_space(folder, args.model, args.adapter, title, examples)
        print(f"Written to {folder}: app.py, requirements.txt and README.md; upload them to a Space.")
        return 0
    from sae_unlearn.playground.page import build_page, gradio
    from sae_unlearn.playground.session import Session

    if not args.adapter:
        raise ValueError(NO_ADAPTER.format(option="playground"))
    gradio()
    model, tokenizer = load_model(args.model, args.model_revision, args.device, args.dtype)
    guarded = with_adapter(model, args.adapter, args.adapter_revision, args.adapter_subfolder)
    page = build_page(Session(guarded, tokenizer), title, examples)
    page.queue(max_size=16).launch(server_name=args.host, server_port=args.port, share=False)
    return 0


def next_step(args: argparse.Namespace) -> str:
    """The command to run after this one: none."""
    return ""
