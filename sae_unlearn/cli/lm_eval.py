"""The command `sae-unlearn-lm-eval`: the LM evaluation harness with the model "sae-unlearn".

The harness finds models in a registry of its own, so a package must register one before the harness' command starts.
This command registers it and then runs the harness' command:

    sae-unlearn-lm-eval --model sae-unlearn --model_args pretrained=google/gemma-2-2b-it,adapter=forget-biology \\
        --tasks wmdp_bio,mmlu
"""

import sys

from sae_unlearn.install import install_command


def main() -> int:
    """Run the harness' command line. Return 2 if the harness is not installed."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        print(
            f"sae-unlearn-lm-eval: the harness is missing ({error}); run: {install_command('harness')}",
            file=sys.stderr,
        )
        return 2
    from sae_unlearn.cli import lm_eval_model as harness_model  # noqa: F401  registers the model

    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
