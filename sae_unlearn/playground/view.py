"""The gate's view as HTML: tokens shaded by their evidence, and the statistic with the threshold."""

from html import escape

from sae_unlearn.playground.session import GateView


STYLE = """
.su-tokens {line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.95rem}
.su-tokens span {border-radius: 3px; padding: 1px 0}
.su-fired {color: #b23c00; font-weight: 600} .su-quiet {color: #00624d; font-weight: 600}
.dark .su-fired {color: #ff9466} .dark .su-quiet {color: #5fd3b3}
.su-gate {width: 100%; height: auto; max-height: 190px}
"""
SHADE = (213, 94, 0)  # vermilion, which readers who see no red tell from the text
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 170, 44, 24


def verdict_html(gate: GateView) -> str:
    """One sentence: whether the gate fires, and by how much."""
    word, kind = ("fires", "su-fired") if gate.fired else ("does not fire", "su-quiet")
    return f'<p>The gate <span class="{kind}">{word}</span>: {gate.deciding:.3g}, threshold {gate.threshold:.3g}.</p>'


def tokens_html(gate: GateView) -> str:
    """The row, each token shaded by its evidence; features and evidence on hover."""
    most = max((token.evidence for token in gate.tokens), default=0.0)
    parts = []
    for token in gate.tokens:
        share = max(0.0, token.evidence) / most if most > 0 else 0.0
        title = ""
        if token.features:
            features = ", ".join(f"feature {number}: {value:g}" for number, value in token.features)
            title = f' title="{escape(f"{token.evidence:.2f}; {features}")}" tabindex="0"'
        color = f"rgba({SHADE[0]},{SHADE[1]},{SHADE[2]},{0.65 * share:.2f})"
        parts.append(f'<span{title} style="background:{color}">{escape(token.text)}</span>')
    return f'<div class="su-tokens">{"".join(parts)}</div>'


def gate_svg(gate: GateView) -> str:
    """The statistic over the tokens, with the threshold as a dashed line."""
    if not gate.values:
        return ""
    low = min(0.0, gate.threshold, *gate.values)
    top = low + 1.15 * (max(*gate.values, gate.threshold, 1e-9) - low)
    last = max(1, gate.places[-1])

    def x(place: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * place / last

    def y(value: float) -> float:
        return (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 8) * (value - low) / (top - low)

    points = " ".join(f"{x(p):.1f},{y(v):.1f}" for p, v in zip(gate.places, gate.values, strict=True))
    line = y(gate.threshold)
    label = f"Gate over {len(gate.tokens)} tokens: {gate.values[-1]:.3g} at the end, threshold {gate.threshold:.3g}"
    text = 'fill="currentColor" font-size="12"'
    return (
        f'<svg class="su-gate" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<line x1="{LEFT}" y1="{y(0):.1f}" x2="{WIDTH - 10}" y2="{y(0):.1f}" stroke="currentColor" opacity="0.4"/>'
        f'<line x1="{LEFT}" y1="{line:.1f}" x2="{WIDTH - 10}" y2="{line:.1f}" stroke="#d55e00" stroke-dasharray="6 4"/>'
        f'<text x="{LEFT + 4}" y="{line - 5:.1f}" {text}>threshold {gate.threshold:.3g}</text>'
        f'<polyline points="{points}" fill="none" stroke="#0072b2" stroke-width="2.5"/>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}" {text}>token 1</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 6}" {text} text-anchor="end">token {len(gate.tokens)}</text>'
        f'<text x="{LEFT - 6}" y="{y(0):.1f}" {text} text-anchor="end">0</text></svg>'
    )
