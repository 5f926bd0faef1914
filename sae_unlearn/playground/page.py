"""The playground's page, with Gradio."""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.install import install_command
from sae_unlearn.playground.session import Session
from sae_unlearn.playground.settings import Settings
from sae_unlearn.playground.view import STYLE, gate_html, tokens_html, verdict_html


OWN = "as fitted"
ACTIONS = (OWN, "clamp", "record", "refuse")
NOTE = "Answers are greedy, so the two differ by the guardrail alone. Nothing of what you type is stored or sent."
UNRECORDED: dict[str, Any] = {"run_history": False, "enable_monitoring": False, "footer_links": []}
"""Arguments of Gradio's `launch` against records: Gradio 6 keeps each run in the browser otherwise."""


def _rounded(value: float) -> float:
    """A number with four digits, as a slider shows it."""
    return float(f"{value:.4g}")


def gradio() -> Any:
    """The package Gradio, without its usage statistics.

    Raises:
        ImportError: If it is not installed; names the extra.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as found
    except ImportError as error:
        raise ImportError(f"The playground needs `gradio`; run: {install_command('playground')}") from error
    return found


def serve(page: Any, **options: Any) -> Any:
    """Serve a page without any record of what is typed.

    Args:
        page (Any): Of `build_page`.
        **options (Any): Further arguments of Gradio's `launch`.
    """
    page.queue(max_size=16)
    taken = inspect.signature(page.launch).parameters  # older versions of Gradio record nothing and lack some of them
    return page.launch(**{name: value for name, value in UNRECORDED.items() if name in taken}, **options)


def build_page(
    session: Session, title: str, examples: Sequence[str] = (), labels: Mapping[int, str] | None = None
) -> Any:
    """The page of a session, a `gradio.Blocks`; `serve` shows it.

    Args:
        session (Session): Model and guardrail.
        title (str): Its heading.
        examples (Sequence[str], *optional*, defaults to ()): Prompts to click on, e.g. some near the topic.
        labels (Mapping[int, str], *optional*): Labels of the SAE's features, by their ids.
    """
    gr = gradio()
    threshold = session.config.tau
    shown = _rounded(threshold)

    def answer(
        prompt: str, enabled: bool, action: str, tau: float, dose: float, tokens: float, template: bool
    ) -> Iterator[tuple[str, str, str, str]]:
        settings = Settings(
            enabled=enabled,
            action=None if action == OWN else action,
            threshold=None if tau == shown else float(tau),
            dose=float(dose),
            max_new_tokens=int(tokens),
            chat_template=template,
        )
        seen, gate = None, ("", "")
        try:
            for found in session.answers(prompt, settings):
                if found.gate is not seen and found.gate is not None:
                    seen = found.gate
                    gate = (verdict_html(seen) + gate_html(seen), tokens_html(seen, labels))
                yield found.bare, found.guarded, *gate
        except UnlearnError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<style>{STYLE}</style>", padding=False)
        gr.Markdown(f"# {title}\n\n{NOTE}")
        prompt = gr.Textbox(label="Prompt", lines=2, autofocus=True, elem_id="prompt")
        if examples:
            gr.Examples([[text] for text in examples], inputs=[prompt], label="Prompts to try", elem_id="examples")
        with gr.Row():
            ask = gr.Button("Answer", variant="primary", elem_id="ask", scale=4, min_width=160)
            stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
        with gr.Row():
            bare = gr.Textbox(label="Without the guardrail", lines=6, interactive=False, elem_id="bare")
            guarded = gr.Textbox(label="With the guardrail", lines=6, interactive=False, elem_id="guarded")
        curve = gr.HTML(label="Gate", elem_id="gate")
        tokens = gr.HTML(label="Tokens", elem_id="tokens")
        with gr.Accordion("Settings of the next answer", elem_id="settings"):
            with gr.Row():
                enabled = gr.Checkbox(True, label="Guardrail", elem_id="enabled", min_width=180)
                template = gr.Checkbox(
                    session.has_template,
                    label="Chat template" if session.has_template else "Chat template (the tokenizer has none)",
                    interactive=session.has_template,
                    elem_id="template",
                    min_width=260,
                )
                action = gr.Radio(ACTIONS, value=OWN, label="Action", elem_id="action", scale=2, min_width=260)
            with gr.Row():
                low, high = session.config.threshold_bounds
                low, high = max(low, min(0.0, 4 * threshold)), min(0.999 * high, max(1.0, 4 * threshold))
                low, high, step = _rounded(low), _rounded(high), _rounded((high - low) / 400)
                tau = gr.Slider(low, high, value=shown, step=step, label="Threshold", elem_id="threshold")
                dose = gr.Slider(0, 4, value=1, step=0.25, label="Dose, times the fitted one", elem_id="dose")
                length = gr.Slider(8, 400, value=60, step=4, label="Tokens of an answer", elem_id="length")
        inputs = [prompt, enabled, action, tau, dose, length, template]
        outputs = [bare, guarded, curve, tokens]
        runs = [each(answer, inputs, outputs, concurrency_limit=1) for each in (ask.click, prompt.submit)]
        stop.click(None, cancels=runs)
    return page
