"""The playground's page, with Gradio."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from sae_unlearn.errors import UnlearnError
from sae_unlearn.install import install_command
from sae_unlearn.playground.session import Session, Settings
from sae_unlearn.playground.view import STYLE, gate_svg, tokens_html, verdict_html


OWN = "as fitted"
ACTIONS = (OWN, "clamp", "record", "refuse")
NOTE = "Answers are greedy, so the two differ by the guardrail alone. Nothing of what you type is stored or sent."


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


def build_page(session: Session, title: str, examples: Sequence[str] = ()) -> Any:
    """The page of a session, a `gradio.Blocks`.

    Args:
        session (Session): Model and guardrail.
        title (str): Its heading.
        examples (Sequence[str], *optional*, defaults to ()): Prompts to click on, e.g. some near the topic.
    """
    gr = gradio()
    threshold = session.config.tau

    def answer(
        prompt: str, enabled: bool, action: str, tau: float, dose: float, tokens: float, template: bool
    ) -> Iterator[tuple[str, str, str, str]]:
        settings = Settings(
            enabled=enabled,
            action=None if action == OWN else action,
            threshold=float(tau),
            dose=float(dose),
            max_new_tokens=int(tokens),
            chat_template=template,
        )
        seen, gate = None, ("", "")
        try:
            for found in session.answers(prompt, settings):
                if found.gate is not seen and found.gate is not None:
                    seen = found.gate
                    gate = (verdict_html(seen) + gate_svg(seen), tokens_html(seen))
                yield found.bare, found.guarded, *gate
        except UnlearnError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<style>{STYLE}</style>")
        gr.Markdown(f"# {title}\n\n{NOTE}")
        prompt = gr.Textbox(label="Prompt", lines=3, autofocus=True, elem_id="prompt")
        with gr.Row():
            ask = gr.Button("Answer", variant="primary", elem_id="ask")
            stop = gr.Button("Stop")
        with gr.Row():
            bare = gr.Textbox(label="Without the guardrail", lines=8, interactive=False, elem_id="bare")
            guarded = gr.Textbox(label="With the guardrail", lines=8, interactive=False, elem_id="guarded")
        curve = gr.HTML(label="Gate", elem_id="gate")
        tokens = gr.HTML(label="Tokens", elem_id="tokens")
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                enabled = gr.Checkbox(True, label="Guardrail")
                template = gr.Checkbox(session.has_template, label="Chat template", interactive=session.has_template)
                action = gr.Radio(ACTIONS, value=OWN, label="Action")
            with gr.Row():
                low, high = session.config.threshold_bounds
                low, high = max(low, min(0.0, 4 * threshold)), min(0.999 * high, max(1.0, 4 * threshold))
                tau = gr.Slider(low, high, value=threshold, step=(high - low) / 400, label="Threshold")
                dose = gr.Slider(0, 4, value=1, step=0.25, label="Dose, times the fitted one")
                length = gr.Slider(8, 400, value=60, step=4, label="Tokens of an answer")
        if examples:
            gr.Examples([[text] for text in examples], inputs=[prompt], label="Prompts to try")
        inputs = [prompt, enabled, action, tau, dose, length, template]
        outputs = [bare, guarded, curve, tokens]
        runs = [each(answer, inputs, outputs, concurrency_limit=1) for each in (ask.click, prompt.submit)]
        stop.click(None, cancels=runs)
    return page
