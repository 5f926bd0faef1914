"""The example of a service: its commands, files and metrics are those of the package."""

import re
from pathlib import Path

import yaml

from sae_unlearn.cli.main import build_parser
from sae_unlearn.engines import prometheus


FOLDER = Path(__file__).resolve().parents[2] / "examples" / "serving"


def test_its_commands_are_those_of_the_command_line():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for name in ("server", "check"):
        args = build_parser().parse_args(services[name]["command"])
        assert args.adapter == "/adapter"
    assert 'ENTRYPOINT ["sae-unlearn"]' in (FOLDER / "Dockerfile").read_text()
    for command in re.findall(
        r"^ *sae-unlearn (.*?[^\\])\n", (FOLDER / "README.md").read_text(), re.MULTILINE | re.DOTALL
    ):
        build_parser().parse_args(command.replace("\\\n", " ").split())


def test_its_alerts_are_on_metrics_that_are_there():
    rules = (FOLDER / "alerts.yml").read_text()
    yaml.safe_load(rules)
    named = set(re.findall(r"sae_guardrail:\w+", rules))
    assert named
    assert named <= set(re.findall(r"sae_guardrail:\w+", prometheus.__doc__))
    assert yaml.safe_load((FOLDER / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]
