"""Rendering of a guardrail's page from the template `page.html` and the style sheet `page.css`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sae_unlearn.checks import shown
from sae_unlearn.evaluation.explorer import charts
from sae_unlearn.evaluation.explorer import view as contents
from sae_unlearn.evaluation.explorer.feature_contexts import FeatureContexts
from sae_unlearn.evaluation.explorer.sweep import Sweep
from sae_unlearn.guardrail.config import SAEGuardrailConfig
from sae_unlearn.guardrail.summary import curve_rows, fire_rows, fit_warnings, guardrail_facts, statistic_in_words
from sae_unlearn.version import __version__


HERE = Path(__file__).parent


def render_page(
    title: str,
    config: SAEGuardrailConfig,
    clamp: Sequence[float],
    seen: FeatureContexts | None,
    sweep: Sweep | None,
    labels: Mapping[int, str] | None = None,
) -> str:
    """Return the page of a guardrail. All outside content is escaped.

    The arguments are those of `GuardrailPicture`.
    """
    calibration = config.calibration or {}
    stored = contents.stored_statistics(calibration)
    features, words = contents.feature_rows(config, clamp, seen, labels), statistic_in_words(config)
    fields: dict[str, Any] = {
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "title": title,
        "version": __version__,
        "facts": guardrail_facts(config, clamp),
        "threshold": f"{config.tau:.4g}",
        "statistic": words,
        "fire_rows": fire_rows(calibration),
        "auroc": shown(calibration.get("auroc"), ".3f"),
        "edit": shown(calibration.get("edit_to_residual"), ".3g"),
        "warnings": fit_warnings(calibration),
        "curve": curve_rows(calibration),
        "distribution": charts.distribution(stored, config.tau, words) if stored else None,
        "fire_rates": charts.fire_rates(stored, config.tau) if stored else None,
        "features": features,
        "linked": any(feature["page"] for feature in features),
        "labeled": any(feature["label"] for feature in features),
        "approximated": isinstance(calibration.get("topk"), dict),
        "recorded": sorted({name for feature in features for name in feature["fit"]}),
        "measured": sorted({name for feature in features for name in feature["seen"]}),
        "texts": seen,
        "texts_distribution": charts.distribution(seen.statistics, config.tau, words) if seen else None,
        "texts_fire_rates": charts.fire_rates(seen.statistics, config.tau) if seen else None,
        "sweep": sweep,
    }
    if sweep is not None:
        fields |= {
            "dose_curve": charts.dose_curve(sweep.doses),
            "threshold_curve": charts.threshold_curve(sweep.thresholds, config.tau),
            "dose_rows": contents.sweep_rows(sweep.doses),
            "threshold_rows": contents.sweep_rows(sweep.thresholds),
        }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(fields)
