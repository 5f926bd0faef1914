"""A saved guardrail with another threshold: new config, card and picture, copied weights."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sae_unlearn.errors import GuardrailError, as_guardrail_error
from sae_unlearn.guardrail.config_parts.layout import WEIGHTS_NAME
from sae_unlearn.guardrail.storage.card import write_card
from sae_unlearn.guardrail.storage.folder import GuardrailFolder
from sae_unlearn.guardrail.storage.saving import saved_whole
from sae_unlearn.guardrail.tuning.trade_off import TradeOff, trade_off, with_trade_off


@as_guardrail_error()
def tune_guardrail(
    source: "str | os.PathLike[str] | GuardrailFolder", output: str | os.PathLike[str], **asked: float | None
) -> TradeOff:
    """Write a guardrail with another threshold; neither model nor texts are needed.

    Args:
        source (str or PathLike or GuardrailFolder): Folder or Hub id of a guardrail.
        output (str or PathLike): Folder to write to; may be the same one.
        asked: One of `target_recall`, `max_false_alarms` and `threshold`, as for `set_threshold`.

    Raises:
        GuardrailError: As `set_threshold`, or if `source` is not a guardrail. Nothing is written then.
    """
    folder = source if isinstance(source, GuardrailFolder) else GuardrailFolder.open(source)
    artefact = folder.artefact()
    config = artefact.config
    chosen = trade_off(config.calibration, **cast(Any, asked))
    calibration = with_trade_off(config, chosen)
    config.threshold, config.calibration = chosen.threshold, calibration
    weights, target = folder.path(WEIGHTS_NAME), Path(output).expanduser()
    if target.exists() and not target.is_dir():
        raise GuardrailError(f"output={target}: expected a folder, got a file. Pass a folder.")
    with saved_whole(target) as stage:
        config.save_pretrained(str(stage))
        shutil.copyfile(weights, stage / WEIGHTS_NAME)
        write_card(stage, config, cast(Any, SimpleNamespace(name_or_path=config.base_model_name_or_path or "")))
    return chosen
