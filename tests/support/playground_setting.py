"""A playground session on the tiny model, whose gate tells two prompts apart."""

from tiny_topic import tiny_parts, topic_texts

from sae_unlearn import fit_guardrail
from sae_unlearn.playground.session import Session


PROMPT = topic_texts("forget", 1, seed=7, words=12)[0]
OTHER = topic_texts("retain", 1, seed=7, words=12)[0]


def tiny_session() -> Session:
    """A session whose gate fires on `PROMPT` and not on `OTHER`."""
    model, tokenizer, sae = tiny_parts()
    texts = topic_texts("forget", 40), topic_texts("retain", 80)
    options = {"statistic": "ratio", "clamp_scale": 4.0, "progress": False}
    found = Session(fit_guardrail(model, tokenizer, sae, *texts, **options), tokenizer)
    topic, other = (found.gate(found.prompt_ids(prompt)).values[-1] for prompt in (PROMPT, OTHER))
    assert topic > other
    found.config.threshold = (topic + 3 * other) / 4
    return found
