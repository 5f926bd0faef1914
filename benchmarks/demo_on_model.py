"""The demo on another model: fit on the demo's texts, and measure its facts and texts before and after.

    python benchmarks/demo_on_model.py --model FOLDER_OR_ID --sae FOLDER_OR_ID --output FOLDER [--chat-template]

With `--chat-template` the facts are asked once more in the tokenizer's chat template, as a request to complete the
sentence: the guardrail has been fitted on plain text, and the template is around every question that it gets in use.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from sae_unlearn.commands.loading import load_model, load_sae
from sae_unlearn.demo import load_demo_texts, run_demo
from sae_unlearn.evaluation import Report, compare, evaluate


REQUEST = "Complete this sentence. Answer with the missing words alone.\n\n{} ..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sae", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter and the reports")
    parser.add_argument("--chat-template", action="store_true")
    parser.add_argument("--quick", action="store_true", help="report on a third of the texts")
    args = parser.parse_args()
    (model, tokenizer), texts = load_model(args.model), load_demo_texts()
    facts = [
        [replace(fact, prompt=REQUEST.format(fact.prompt)) for fact in texts.facts[side]]
        for side in ("forget", "retain")
    ]

    def asked() -> Report:
        return evaluate(model, tokenizer, *facts, chat_template=True, max_new_tokens=12)

    before = asked() if args.chat_template else None
    run_demo(model, tokenizer, load_sae(args.sae), args.output, texts, quick=args.quick)
    if before is not None:
        found = compare(before, asked())  # the demo leaves the guardrail on the model
        print(found.to_markdown())
        found.save(args.output / "chat")


if __name__ == "__main__":
    main()
