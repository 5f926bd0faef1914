"""Encode the texts of `new_topics.py` once: which features are active at each token, their values, and the residual.

    python -m benchmarks.gates.encoded_rows --data FOLDER --cache FOLDER           # goes on where it was cut

Files of the cache, one per set of texts, each by `torch.save`:

    lengths [rows], starts and features of the active ones as in `fit.active.ActiveFeatures`, values float32,
    residual [tokens, d_in] float16, norms [tokens] float32; special tokens are left out

Sets behind filler hold the tokens of the text alone, and `filler` and `cut` say which filler is read before it and how
many of its tokens. The filler's cache of keys and values is computed once and shared, which is exact in a causal model:
a text behind 1,024 words costs its own tokens only.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.forget.topics import data_folder
from benchmarks.gates import new_topics
from benchmarks.gates.new_topics import TOPICS, Texts, load_new_topics, snippet
from sae_unlearn.demo.model import load_demo_model, load_demo_sae
from sae_unlearn.demo.texts import load_demo_texts
from sae_unlearn.evaluation.audit.attacks.rephrasing import TEMPLATES, rephrased
from sae_unlearn.evaluation.audit.attacks.wrappers import WRAPPERS


MAX_LENGTH = 160
WORDS = (16, 64, 256, 1024)
AFTER = {64: 12, 256: 6, 1024: 2}
"""Words after a text: how many texts of each topic, since every one has to be run whole."""


class Encoded(NamedTuple):
    """Tokens of some rows, joined: by token the active features (`features[starts[t]:starts[t + 1]]`)."""

    lengths: Tensor
    starts: Tensor
    features: Tensor
    values: Tensor
    residual: Tensor
    norms: Tensor


def groups(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return the items in groups of `size`; the last one may be smaller."""
    return [items[at : at + size] for at in range(0, len(items), size)]


class Encoder:
    """The demo's model up to the SAE's layer, and the SAE."""

    def __init__(self) -> None:
        model, self.tokenizer = load_demo_model()
        self.sae = load_demo_sae()
        self.body = model.model
        self.body.layers = self.body.layers[: self.sae.layer + 1]
        self.body.norm = nn.Identity()
        self.config = model.config
        self.config.num_hidden_layers = self.sae.layer + 1
        self.special = torch.tensor(self.tokenizer.all_special_ids)

    def ids(self, text: str, bos: bool = True) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=bos)["input_ids"]
        return found[: MAX_LENGTH if bos else None]

    @torch.no_grad()
    def run(self, rows: list[list[int]], cache: DynamicCache | None = None) -> list[Tensor]:
        """The residual stream `[tokens, d_in]` of each row, right-padded in one batch."""
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        past = 0 if cache is None else cache.get_seq_length()
        places = torch.arange(past, past + longest)[None]
        out = self.body(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=cache is not None)
        return [hidden[: len(row)] for hidden, row in zip(out.last_hidden_state, rows, strict=True)]

    def encoded(self, rows: list[list[int]], residuals: list[Tensor]) -> Encoded:
        """Content tokens of rows and what is active there."""
        kept = [~torch.isin(torch.tensor(row), self.special) for row in rows]
        hidden = torch.cat([h[k] for h, k in zip(residuals, kept, strict=True)])
        values = torch.cat([self.sae.encode(some) for some in hidden.split(2048)])
        active = values > 0
        starts = torch.cat([torch.zeros(1, dtype=torch.long), active.sum(dim=1).cumsum(0)])
        return Encoded(
            torch.tensor([int(k.sum()) for k in kept]),
            starts,
            active.nonzero()[:, 1].to(torch.int16),
            values[active],
            hidden.clamp(-6e4, 6e4).half(),
            hidden.norm(dim=1),
        )

    def texts(self, texts: list[str], size: int = 8) -> Encoded:
        """Texts as they are."""
        rows = [self.ids(text) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: list[Any] = [None] * len(rows)
        for some in groups(order, size):
            for i, hidden in zip(some, self.run([rows[i] for i in some]), strict=True):
                found[i] = hidden
        return self.encoded(rows, found)


def behind(encoder: Encoder, fillers: list[str], texts: list[str]) -> dict[str, Any]:
    """Texts behind 16 to 1,024 words of filler: text `i` behind filler `i` modulo their number."""
    cuts = {str(w): [] for w in WORDS}
    rows: dict[str, list[list[int]]] = {str(w): [[]] * len(texts) for w in WORDS}
    hidden: dict[str, list[Any]] = {str(w): [None] * len(texts) for w in WORDS}
    whole_rows, whole = [], []
    blank = encoder.ids("\n\n", bos=False)
    own = [encoder.ids(text, bos=False) for text in texts]
    for k, filler in enumerate(fillers):
        words = filler.split()
        parts = [encoder.tokenizer(" ".join(words[: WORDS[0]]))["input_ids"]]
        for low, high in itertools.pairwise(WORDS):
            parts.append(encoder.ids(" " + " ".join(words[low:high]), bos=False))
        cache, done, mine = DynamicCache(config=encoder.config), 0, range(k, len(texts), len(fillers))
        pieces = []
        for number, part in zip(WORDS, parts, strict=True):
            pieces.append(encoder.run([part], cache)[0])
            done += len(part)
            cuts[str(number)].append(done)
            for some in groups(mine, 6):
                forked = copy.deepcopy(cache)
                forked.batch_repeat_interleave(len(some))
                for i, h in zip(some, encoder.run([blank + own[i] for i in some], forked), strict=True):
                    rows[str(number)][i], hidden[str(number)][i] = blank + own[i], h
        whole_rows.append([token for part in parts for token in part])
        whole.append(torch.cat(pieces))
    special = [int(torch.isin(torch.tensor(row), encoder.special).sum()) for row in whole_rows]
    found: dict[str, Any] = {"fillers": encoder.encoded(whole_rows, whole)._asdict()}
    found["cuts"] = {w: [c - s for c, s in zip(some, special, strict=True)] for w, some in cuts.items()}
    for w in rows:
        found[w] = encoder.encoded(rows[w], hidden[w])._asdict()
    return found


def after(encoder: Encoder, fillers: list[str], texts: list[str], words: int) -> Encoded:
    """Texts before a number of words of filler."""
    rows = []
    for i, text in enumerate(texts):
        filler = " ".join(fillers[i % len(fillers)].split()[:words])
        rows.append(encoder.ids(f"{text}\n\n{filler}", bos=False))
        rows[-1] = [encoder.tokenizer.bos_token_id, *rows[-1]]
    return encoder.encoded(rows, [encoder.run([row])[0] for row in rows])


def facts() -> dict[str, list[str]]:
    """The demo's questions, by side."""
    return {side: [fact.prompt for fact in some] for side, some in load_demo_texts().facts.items()}


def snippets(texts: Texts) -> list[str]:
    """What is read behind filler: of each topic in turn, then of other text, then the demo's questions."""
    found = [snippet(t) for name in TOPICS for t in texts.held_out[name][: new_topics.SNIPPETS]]
    found += [snippet(t) for t in texts.other_held_out[: new_topics.OTHER_SNIPPETS]]
    return found + facts()["forget"] + facts()["retain"]


def plans(encoder: Encoder, texts: Texts) -> Iterator[tuple[str, Any]]:
    """What is encoded, by name of the file, the most wanted first."""
    demo = load_demo_texts()
    yield "other_fit", lambda: encoder.texts(texts.other_fit)
    yield "other_held_out", lambda: encoder.texts(texts.other_held_out)
    for name in TOPICS:
        yield f"{name}-fit", lambda name=name: encoder.texts(texts.fit[name])
        yield f"{name}-held_out", lambda name=name: encoder.texts(texts.held_out[name])
    yield "snippets", lambda: encoder.texts(snippets(texts))
    yield "behind", lambda: behind(encoder, texts.fillers, snippets(texts))
    for side in ("forget", "retain"):
        yield f"demo-{side}", lambda side=side: encoder.texts(getattr(demo, side))
        yield f"demo-held_out-{side}", lambda side=side: encoder.texts(demo.heldout[side])
    yield "xstest", lambda: encoder.texts(texts.xstest)
    for name in TOPICS:
        yield f"{name}-near", lambda name=name: encoder.texts(texts.near[name])
    for words, number in AFTER.items():
        for name in TOPICS:
            some = [snippet(t) for t in texts.held_out[name][:number]]
            yield (
                f"{name}-after-{words}",
                lambda some=some, words=words: after(encoder, texts.fillers, some, words),
            )
        asked = facts()["forget"][: 2 * number]
        yield f"demo-after-{words}", lambda asked=asked, words=words: after(encoder, texts.fillers, asked, words)
    for form, template in {**WRAPPERS, **TEMPLATES}.items():
        if "{prompt}" in template:
            some = [rephrased(snippet(t), template) for name in TOPICS for t in texts.held_out[name][:8]]
            yield f"form-{form}", lambda some=some: encoder.texts(some)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    encoder, begun, total = Encoder(), time.perf_counter(), 0
    for name, encode in plans(encoder, load_new_topics(data_folder(args.data))):
        path = args.cache / f"{name.replace(' ', '_').replace('/', '_')}.pt"
        if path.exists():
            continue
        found = encode()
        torch.save(found._asdict() if isinstance(found, Encoded) else found, path)
        total += int(found.lengths.sum()) if isinstance(found, Encoded) else 0
        print(f"{name:32s} {total} tokens, {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
