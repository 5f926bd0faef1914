"""The command that starts vLLM's server with guardrails, for `sae-unlearn serve`."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from sae_unlearn.engines.vllm.plugin import EXTENSION
from sae_unlearn.engines.vllm.settings import KEY
from sae_unlearn.errors import GuardrailError, GuardrailNotReady


PLUGIN = "sae_unlearn"
GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
"""Groups of plugins that vLLM loads unless `VLLM_PLUGINS` leaves them out."""

_OWN = ("--model", "--worker-extension-cls")
_SETTINGS = "--additional-config"


def serve_command(
    model: str, settings: Mapping[str, Any], more: Sequence[str] = (), host: str | None = None, port: int | None = None
) -> list[str]:
    """Return the command of vLLM's server.

    Args:
        model (str): Folder or Hub id of the model.
        settings (Mapping): Entry `sae_guardrail` of `--additional-config`, see `Settings`.
        more (Sequence[str], *optional*): Options of vLLM, which are passed on.
        host (str, *optional*): Address to listen on. Defaults to vLLM's.
        port (int, *optional*): Port. Defaults to vLLM's.

    Raises:
        GuardrailError: If `more` has an option that this function sets.
    """
    taken = [word for word in more if word.partition("=")[0] in _OWN]
    if taken:
        raise GuardrailError(f"{taken[0]}: expected options that `serve` does not set itself. Leave it out.")
    more, given = _without_settings(list(more))
    if KEY in given:
        raise GuardrailError(f"{_SETTINGS}: expected no entry {KEY}. Pass guardrails with --adapter.")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *more]
    for flag, value in (("--host", host), ("--port", port)):
        command += [] if value is None else [flag, str(value)]
    return [*command, _SETTINGS, json.dumps({**given, KEY: dict(settings)}), "--worker-extension-cls", EXTENSION]


def serve_environment(environment: Mapping[str, str], cuda: bool) -> dict[str, str]:
    """Return an environment in which vLLM loads the plugin with its routes, next to other plugins.

    Args:
        environment (Mapping[str, str]): The environment of this process.
        cuda (bool): True if vLLM will run on a GPU. Its second model runner is not tested and is turned off then.

    Raises:
        GuardrailNotReady: If vLLM cannot find the plugin, for instance in a checkout that is not installed.
    """
    for group in ("vllm.general_plugins", "vllm.endpoint_plugins"):
        if not entry_points(group=group, name=PLUGIN):
            raise GuardrailNotReady(
                f"{group}: expected the entry point {PLUGIN}, got none. Install the package with pip, next to vLLM."
            )
    named = environment.get("VLLM_PLUGINS")
    if named is None:
        names = {entry.name for group in GROUPS for entry in entry_points(group=group)}
    else:
        names = {name for name in named.split(",") if name}
    found = {**environment, "VLLM_PLUGINS": ",".join(sorted(names | {PLUGIN}))}
    if cuda:
        found.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    return found


def replace_process(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Become the server: signals and exit code are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), dict(environment))


def _without_settings(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the options without `--additional-config`, and its value."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == _SETTINGS:
            value = value if equals else "".join(words[place + 1 : place + 2])
            rest = words[:place] + words[place + (1 if equals else 2) :]
            try:
                found = json.loads(value)
            except json.JSONDecodeError as error:
                raise GuardrailError(f"{_SETTINGS}={value!r:.80}: expected JSON, got {error}.") from error
            if not isinstance(found, dict):
                raise GuardrailError(f"{_SETTINGS}={value!r:.80}: expected a mapping. Correct it.")
            return rest, found
    return words, {}
