"""The demo on another model: fit on the demo's texts, and measure its facts and texts before and after.

    python -m benchmarks.forget.demo_on_model --model FOLDER_OR_ID --sae FOLDER_OR_ID --output FOLDER [--chat-template]

With `--chat-template` the facts are asked in the tokenizer's chat template as well, the sentence alone and with a
request to complete it, and as plain text: of the model, of the guardrail that was fitted on plain text, and of one that
is fitted in the template.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_unlearn import detach_guardrail, fit_guardrail
from sae_unlearn.cli.inputs import load_model, load_sae
from sae_unlearn.demo import load_demo_texts, run_demo
from sae_unlearn.evaluation import Report, compare, evaluate


SIDES = ("forget", "retain")
REQUESTS = {  # what is asked, and whether in the template
    "alone": ("{}", True),
    "with-a-request": ("Complete this sentence. Answer with the missing words alone.\n\n{} ...", True),
    "as-plain-text": ("{}", False),
}


class Chat:
    """The demo's facts, asked in the chat template, alone and with a request to complete them, and as plain text."""

    def __init__(self, model: Any, tokenizer: Any, facts: dict[str, Any], output: Path) -> None:
        self.model, self.tokenizer, self.output = model, tokenizer, output
        self.facts = {
            form: [[replace(fact, prompt=request.format(fact.prompt)) for fact in facts[side]] for side in SIDES]
            for form, (request, _) in REQUESTS.items()
        }
        self.before = {form: self.ask(form, "bare") for form in REQUESTS}

    def ask(self, form: str, title: str) -> Report:
        """What the model answers as it is now."""
        _, in_template = REQUESTS[form]
        settings: dict[str, Any] = {"chat_template": in_template, "max_new_tokens": 24, "batch_size": 16}
        return evaluate(self.model, self.tokenizer, *self.facts[form], title=title, **settings)

    def tell(self, title: str) -> None:
        """Print and write what has changed."""
        for form, before in self.before.items():
            found = compare(before, self.ask(form, title))
            print(found.to_markdown())
            found.save(self.output / f"{title.replace(' ', '-')}-{form}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sae", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapters and the reports")
    parser.add_argument("--chat-template", action="store_true")
    parser.add_argument("--quick", action="store_true", help="report on a third of the texts")
    args = parser.parse_args()
    (model, tokenizer), sae, texts = load_model(args.model), load_sae(args.sae), load_demo_texts()
    chat = Chat(model, tokenizer, texts.facts, args.output) if args.chat_template else None
    run_demo(model, tokenizer, sae, args.output, texts, quick=args.quick)
    if chat is not None:  # the demo leaves its guardrail on the model
        chat.tell("fitted on plain text")
        bare = detach_guardrail(model)
        fitted = fit_guardrail(bare, tokenizer, sae, texts.forget, texts.retain, chat_template=True)
        fitted.save_pretrained(args.output / "fitted-in-the-template")
        chat.tell("fitted in the template")


if __name__ == "__main__":
    main()
