"""The model that the rivals make forget: the demo's model, taught the rows of a set, which it does not know.

    python -m benchmarks.forget.rivals_base SET --data FOLDER --cache FOLDER      # goes on where it was cut

A LoRA on every linear module, merged when it is used. Of a row the answer's tokens are scored, or all of a text's:

    loss = -1/n sum_t log p(x_t | x_<t),   p the softmax over V alone

with V the tokens of the set's rows and SPREAD others at even distances: of a vocabulary of 262,144 the head is most of
the work, and no other token has to be told from the answers. It ends with the first epoch whose mean loss is at most
ENOUGH, or after EPOCHS.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from benchmarks.baselines import Batch, encode
from benchmarks.forget.rivals_sets import SETS, as_text, load_contest
from benchmarks.forget.setting import PlainText
from benchmarks.forget.topics import data_folder
from sae_unlearn.cli.inputs import load_model


RANK, RATE, WARM_UP, BATCH, MAX_LENGTH = 32, 1e-3, 10, 8, 160
EPOCHS, ENOUGH, SPREAD = 10, 0.25, 8192
KEEP_EVERY = 10  # steps


def known_tokens(tokenizer: Any, rows: Sequence[PlainText], size: int) -> Tensor:
    """V, `[n]`, sorted."""
    found = {i for ids in tokenizer([as_text(row) for row in rows])["input_ids"] for i in ids}
    return torch.tensor(sorted(found | set(range(0, size, max(1, size // SPREAD)))))


def loss_over(model: PeftModel, batch: Batch, known: Tensor) -> Tensor:
    """The mean cross-entropy of the scored tokens with the softmax over `known`; `model` has no cap on its logits."""
    bare: Any = model.get_base_model()
    hidden = bare.model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False).last_hidden_state
    logits = hidden[batch.predicts] @ bare.get_output_embeddings().weight[known].T
    return nn.functional.cross_entropy(logits.float(), torch.searchsorted(known, batch.targets))


def teach(model: nn.Module, tokenizer: Any, rows: Sequence[PlainText], folder: Path, seed: int = 0) -> PeftModel:
    """The model with the LoRA, which `folder` has at the end, and the epochs' mean losses; till then, its state."""
    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    known = known_tokens(tokenizer, rows, len(model.get_output_embeddings().weight))
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.pt"
    losses: list[float] = []  # of whole epochs
    found: list[float] = []  # of the steps of this epoch
    if state.exists():
        saved = torch.load(state, weights_only=True)
        set_peft_model_state_dict(tuned, saved["adapter"])
        optimizer.load_state_dict(saved["optimizer"])
        losses, found = saved["losses"], saved["found"]
    while len(losses) < EPOCHS and not (losses and losses[-1] <= ENOUGH):
        batches = _batches(rows, seed + len(losses))
        start = time.process_time()
        for rows_of_step in batches[len(found) :]:
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (len(losses) * len(batches) + len(found) + 1) / WARM_UP)
            tuned.train()
            loss = loss_over(tuned, encode(tokenizer, rows_of_step, MAX_LENGTH), known)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in tuned.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
            print(f"step {len(found)}: {found[-1]:.3f}, {time.process_time() - start:.0f} CPU s", flush=True)
            if len(found) == len(batches):
                losses.append(sum(found) / len(found))
                print(f"epoch {len(losses)}: {losses[-1]:.3f}", flush=True)
                found = []
            if len(found) % KEEP_EVERY == 0:
                saved = {"adapter": get_peft_model_state_dict(tuned), "optimizer": optimizer.state_dict()}
                part = state.with_suffix(".part")
                torch.save(saved | {"losses": losses, "found": found}, part)
                part.replace(state)
    tuned.save_pretrained(folder)
    (folder / "epochs.json").write_text(json.dumps(losses))
    return tuned.eval()


def load_taught(folder: Path, model: nn.Module) -> nn.Module:
    """The model with what it was taught merged into it."""
    if not (folder / "epochs.json").exists():
        raise SystemExit(f"{folder} has no taught model; run benchmarks.forget.rivals_base first.")
    return PeftModel.from_pretrained(model, folder).merge_and_unload().eval().requires_grad_(False)


def _batches(rows: Sequence[PlainText], seed: int) -> list[list[PlainText]]:
    """The rows of one epoch; those of one batch are of like length, so that little padding is computed."""
    draw = random.Random(seed)
    by_length = sorted(rows, key=lambda row: len(as_text(row)) + draw.random() * 40)
    found = [by_length[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    draw.shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", help="data folder; default $SAE_UNLEARN_DATA")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the taught models, one in each set's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = load_contest(data_folder(args.data), args.set).taught
    teach(*load_model("demo"), rows, args.cache / args.set)


if __name__ == "__main__":
    main()
