"""The demo: fit, measure before and after, save, detach, attach from disk, and compare the answers."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from sae_unlearn.cards.plotting import NO_MATPLOTLIB
from sae_unlearn.checks import check_is
from sae_unlearn.demo.measure import Snapshot, answers, measure
from sae_unlearn.demo.report import Line, answers_text, lines_of, measured_text
from sae_unlearn.demo.texts import DemoTexts
from sae_unlearn.guardrail import attach_guardrail, detach_guardrail, fit_guardrail
from sae_unlearn.guardrail.config_parts.layout import CONFIG_NAME, PICTURE, WEIGHTS_NAME
from sae_unlearn.guardrail.storage.card import CardDetails
from sae_unlearn.sae import SparseAutoencoder


ADAPTER_FOLDER = "forget-biology"
REPORT, REPORT_DATA = "report.txt", "report.json"

QUICK = {"heldout": 8, "facts": 16, "prompts": 1}
"""Number of texts per side that `quick` reports on."""

FULL = {"heldout": 40, "facts": 48, "prompts": 2}


class Steps:
    """Clock that measures the time of each step: `with steps("fit"): ...`."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.seconds: dict[str, float] = {}
        self._say = say

    @contextmanager
    def __call__(self, name: str, title: str | None = None) -> Iterator[None]:
        """Time the block as `name`, and print `title` first."""
        if title:
            self._say(f"[{sum(self.seconds.values()):5.0f} s] {title}")
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class DemoReport:
    """Result of the demo.

    Attributes:
        lines (list[Line]): Lines of the table.
        before (Snapshot): Measurements without the guardrail.
        after (Snapshot): Measurements with the guardrail.
        same (bool): True if the base model answered as before after the guardrail was detached, and the guardrail
            attached from disk answered as the fitted one.
        differences (list[str]): The differences, in sentences.
        adapter (Path): Folder of the adapter.
        adapter_bytes (int): Size of its weights and config in bytes.
        picture (Path or None): File of the picture; None if matplotlib is not installed.
        seconds (dict[str, float]): Time of each step in seconds.
    """

    lines: list[Line]
    before: Snapshot
    after: Snapshot
    same: bool
    differences: list[str]
    adapter: Path
    adapter_bytes: int
    picture: Path | None
    seconds: dict[str, float]


def run_demo(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sae: SparseAutoencoder,
    output: str | Path,
    texts: DemoTexts,
    *,
    quick: bool = False,
    progress: bool = True,
    steps: Steps | None = None,
    say: Callable[[str], None] = print,
    license: str | None = None,
) -> DemoReport:
    """Run the demo on a model, and leave the model with the guardrail attached from disk.

    Args:
        model (Module): A causal language model without adapters.
        tokenizer (PreTrainedTokenizerBase): Its tokenizer.
        sae (SparseAutoencoder): An SAE of one of its layers.
        output (str or Path): Folder for the adapter, the picture and the report.
        texts (DemoTexts): Texts to fit and to report on, see `load_demo_texts`.
        quick (bool, *optional*, defaults to False): True to report on less text; the fit is the same.
        progress (bool, *optional*, defaults to True): True to show progress bars.
        steps (Steps, *optional*): A clock with earlier steps.
        say (Callable[[str], None], *optional*, defaults to print): Function that prints a line.
        license (str, *optional*): License of the adapter for its card, by the Hub's names.

    Returns:
        The report, which is also printed and saved in `output`.

    Raises:
        UnlearnError: If an argument has another type. Nothing was saved.
    """
    for name, value, kind in (
        ("model", model, nn.Module),
        ("sae", sae, SparseAutoencoder),
        ("texts", texts, DemoTexts),
    ):
        check_is(value, kind, name)
    steps = steps or Steps(say)
    output = Path(output)
    adapter = output / ADAPTER_FOLDER
    texts = texts.reduced(**(QUICK if quick else FULL))

    with steps("before", "Measuring the model before"):
        before = measure(model, tokenizer, texts, "before", progress)
    with steps("fit", f"Fitting on {len(texts.forget)} paragraphs to forget and {len(texts.retain)} to keep"):
        guarded = fit_guardrail(model, tokenizer, sae, texts.forget, texts.retain, store_probe=True, progress=progress)
    with steps("after", "Measuring it with the guardrail"):
        after = measure(guarded, tokenizer, texts, "after", progress)
    config = guarded.peft_config["default"]
    with steps("save", f"Saving to {adapter}"):
        guarded.save_pretrained(adapter, card=CardDetails(license=license, folder=ADAPTER_FOLDER))
        picture = adapter / PICTURE if (adapter / PICTURE).is_file() else None
        if picture is None:
            say(f"No picture: {NO_MATPLOTLIB}")
    with steps("attach again", "Detaching it, and attaching it again from disk"):
        bare = detach_guardrail(guarded)
        differences = _differences("without the guardrail", before.answers, answers(bare, tokenizer, texts))
        again = attach_guardrail(bare, adapter)
        differences += _differences("attached from disk", after.answers, answers(again, tokenizer, texts))

    lines = lines_of(before, after)
    size = sum((adapter / name).stat().st_size for name in (CONFIG_NAME, WEIGHTS_NAME))
    text = "\n\n".join((measured_text(lines, config), answers_text(texts, before, after)))
    output.mkdir(parents=True, exist_ok=True)
    (output / REPORT).write_text(text + "\n", encoding="utf-8")
    _write_data(output / REPORT_DATA, lines, texts, before, after, steps.seconds)
    say(f"\n{text}\n")
    for difference in differences:
        say(f"NOT THE SAME: {difference}")
    if not differences:
        number = sum(map(len, texts.prompts.values()))
        say(f"Detached, the model gave its {number} answers of before; attached from disk, it gave the guarded ones.")
    say(f"The adapter has {size / 1e3:,.0f} kB (weights and config): {adapter}")
    if picture:
        say(f"The picture: {picture}")
    say(f"The report: {output / REPORT}, as data {output / REPORT_DATA}")
    total = sum(steps.seconds.values())
    say(f"{total:.0f} s in all: " + ", ".join(f"{name} {spent:.0f}" for name, spent in steps.seconds.items()))
    return DemoReport(lines, before, after, not differences, differences, adapter, size, picture, dict(steps.seconds))


def _differences(when: str, expected: dict[str, list[str]], found: dict[str, list[str]]) -> list[str]:
    return [
        f"{when}, {side} prompt {i + 1} was answered {b!r} and not {a!r}"
        for side in expected
        for i, (a, b) in enumerate(zip(expected[side], found[side], strict=True))
        if a != b
    ]


def _write_data(
    path: Path, lines: list[Line], texts: DemoTexts, before: Snapshot, after: Snapshot, seconds: dict[str, float]
) -> None:
    data = {
        "table": [line.as_data() for line in lines],
        "answers": [
            {"side": side, "prompt": prompt, "before": old, "after": new}
            for side in texts.prompts
            for prompt, old, new in zip(texts.prompts[side], before.answers[side], after.answers[side], strict=True)
        ],
        "facts": [
            {"side": side, "prompt": old.fact.prompt, "before": old.completion, "after": new.completion}
            | {"right_before": old.right, "right_after": new.right}
            for side in texts.facts
            for old, new in zip(before.recalls[side], after.recalls[side], strict=True)
        ],
        "seconds": {name: round(spent, 1) for name, spent in seconds.items()},
    }
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
