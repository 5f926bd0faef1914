"""The gate's view as HTML: tokens shaded by their evidence, and the statistic with the threshold.

The curve stretches to the width that it is given, and its labels are text of the page, so both are readable on a phone.
"""

from collections.abc import Mapping
from html import escape

from sae_unlearn.playground.session import GateView, TokenView


STYLE = """
.su-tokens {line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.95rem; margin: 0 0 0.6em}
.su-tokens span {border-radius: 3px; padding: 1px 0}
.su-tokens span[data-says]:is(:hover, :focus)::after {content: attr(data-says); position: fixed; inset: auto 0 0 0;
  z-index: 99; background: #1f2328; color: #fff; padding: 0.6em 1em; line-height: 1.5; white-space: normal}
.su-part {font-size: 0.8rem; opacity: 0.75; margin: 0}
.su-fired {color: #b23c00 !important; font-weight: 600} .su-quiet {color: #00624d !important; font-weight: 600}
.dark .su-fired {color: #ff9466 !important} .dark .su-quiet {color: #5fd3b3 !important}
.su-gate {margin: 0.4em 0 0.8em} .su-plot {position: relative; height: 150px}
.su-plot svg {position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible}
.su-axis {display: flex; justify-content: space-between; font-size: 0.8rem; opacity: 0.75}
.su-keys {font-size: 0.85rem} .su-key {margin-right: 1.2em; white-space: nowrap}
.su-key::before {content: ""; display: inline-block; width: 1.6em; margin-right: 0.5em; vertical-align: middle;
  border-top: 3px solid #0072b2}
.su-key.su-line::before {border-top: 2px dashed #d55e00} .su-key.su-answer::before {border-top: 2px dotted currentColor}
"""
SHADE = (213, 94, 0)  # vermilion, which readers who see no red tell from the text


def verdict_html(gate: GateView) -> str:
    """One sentence: whether the gate fires, and by how much."""
    word, kind = ("fires", "su-fired") if gate.fired else ("does not fire", "su-quiet")
    return f'<p>The gate <span class="{kind}">{word}</span>: {gate.deciding:.3g}, threshold {gate.threshold:.3g}.</p>'


def tokens_html(gate: GateView, labels: Mapping[int, str] | None = None) -> str:
    """Prompt and answer, each token shaded by its evidence, with features on hover, focus or touch.

    Args:
        gate (GateView): The view of the row.
        labels (Mapping[int, str], *optional*): Labels of features, by their ids.
    """
    most = max((token.evidence for token in gate.tokens), default=0.0)
    spans = [_span(token, most, labels or {}) for token in gate.tokens]
    if gate.answer_from is None:
        return f'<div class="su-tokens">{"".join(spans)}</div>'
    parts = (("Prompt", spans[: gate.answer_from]), ("Guarded answer", spans[gate.answer_from :]))
    return "".join(f'<p class="su-part">{name}</p><div class="su-tokens">{"".join(part)}</div>' for name, part in parts)


def _span(token: TokenView, most: float, labels: Mapping[int, str]) -> str:
    share = max(0.0, token.evidence) / most if most > 0 else 0.0
    says = ""
    if token.features:
        named = ((number, value, labels.get(number, "")) for number, value in token.features)
        features = ", ".join(f"feature {n}: {value:g}" + f" ({label})" * bool(label) for n, value, label in named)
        says = f' data-says="{escape(f"evidence {token.evidence:.2f}; {features}")}" tabindex="0"'
    color = f"rgba({SHADE[0]},{SHADE[1]},{SHADE[2]},{0.65 * share:.2f})"
    return f'<span{says} style="background:{color}">{escape(token.text)}</span>'


def gate_html(gate: GateView) -> str:
    """The statistic over the tokens, with the threshold, and the begin of the answer, as lines."""
    if not gate.values:
        return ""
    low = min(0.0, gate.threshold, *gate.values)
    top = low + 1.1 * (max(*gate.values, gate.threshold, 1e-9) - low)
    last = max(1, gate.places[-1])

    def y(value: float) -> float:
        return 100 - 100 * (value - low) / (top - low)

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        place = f'x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"'
        return f'<line {place} vector-effect="non-scaling-stroke" {style}/>'

    points = " ".join(f"{100 * p / last:.2f},{y(v):.2f}" for p, v in zip(gate.places, gate.values, strict=True))
    lines = line(0, y(0), 100, y(0), 'stroke="currentColor" opacity="0.4"')
    lines += line(
        0, y(gate.threshold), 100, y(gate.threshold), 'stroke="#d55e00" stroke-width="2" stroke-dasharray="6 4"'
    )
    keys = f'<span class="su-key">statistic</span><span class="su-key su-line">threshold {gate.threshold:.3g}</span>'
    if gate.answer_from is not None and gate.answer_from < len(gate.tokens):
        begin = 100 * gate.answer_from / last
        lines += line(begin, 0, begin, 100, 'stroke="currentColor" stroke-dasharray="2 3" opacity="0.7"')
        keys += '<span class="su-key su-answer">answer begins</span>'
    label = f"Gate over {len(gate.tokens)} tokens: {gate.values[-1]:.3g} at the end, threshold {gate.threshold:.3g}"
    curve = f'<polyline points="{points}" fill="none" stroke="#0072b2" stroke-width="2.5" '
    return (
        f'<figure class="su-gate"><figcaption class="su-keys">{keys}</figcaption><div class="su-plot">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'{lines}{curve}vector-effect="non-scaling-stroke"/></svg></div>'
        f'<div class="su-axis"><span>token 1</span><span>token {len(gate.tokens)}</span></div></figure>'
    )
