"""The guardrail inside vLLM; `register` is the entry point of the group `vllm.general_plugins`.

This module imports nothing: vLLM only logs an entry point that cannot be imported, and serves without it. An error in
`register` stops vLLM.
"""


def register() -> None:
    """Install the plugin in this process. vLLM calls it in each of its processes, perhaps more than once."""
    from sae_unlearn.engines.vllm.plugin import install

    install()
