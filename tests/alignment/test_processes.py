"""Two processes label and train what one does."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from aligned_in_processes import SOLVED, align
from labeled_in_processes import labeled
from launched import ACCELERATE, TORCHRUN, launch
from oracles import with_package
from peft import PeftModel
from tiny_topic import tiny_parts

from sae_unlearn.alignment.adapter import check_sharding
from sae_unlearn.errors import AlignmentError


SCRIPT = Path(__file__).with_name("aligned_in_processes.py")
WITH_DEEPSPEED = with_package("deepspeed")
ON_THE_CPU = {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "false"}
COMPARED = {"loss", "grad_norm", "toward", "away", "mse", "kl", "eval_loss", "eval_toward", "eval_kl", "eval_known_auc"}


@pytest.mark.slow
def test_two_processes_label_as_one_does_and_write_one_cache(tmp_path):
    launch(SCRIPT.parent / "labeling" / "labeled_in_processes.py", str(tmp_path))
    one = labeled()
    assert one["known"]
    assert one["dropped"] or one["unknown"]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == one | {"processes": 2}
    lines = (tmp_path / "cache.jsonl").read_text().splitlines()
    assert len(lines) == 1 + len(one["answers"])
    assert sorted(lines[1:]) == sorted(line.rstrip("\n") for line in one["answers"])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process trains."""
    return align(tmp_path_factory.mktemp("one") / "one.pt", 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "launcher", "variables"),
    [
        ((), ACCELERATE, {}),
        (("sharded",), TORCHRUN, {}),
        pytest.param(("1",), TORCHRUN, ON_THE_CPU, marks=WITH_DEEPSPEED),
        pytest.param(("2",), TORCHRUN, ON_THE_CPU, marks=WITH_DEEPSPEED),
    ],
    ids=["data_parallel", "fully_sharded", "zero_1", "zero_2"],
)
def test_two_processes_give_the_weights_the_logs_and_the_adapter_of_one(tmp_path, one, kind, launcher, variables):
    out = tmp_path / "two.pt"
    launch(SCRIPT, out, 2, *kind, launcher=launcher, **variables)
    two = torch.load(out)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["sharded"] == (kind == ("sharded",))
    assert two["zero"] == (int(kind[0]) if variables else None)
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, atol=1e-6, rtol=0)
    pairs = list(zip(one["logs"], two["logs"], strict=True))
    assert sum("kl" in a for a, _ in pairs) == 4
    for a, b in pairs:
        shared = a.keys() & COMPARED
        assert {k: b[k] for k in shared} == pytest.approx({k: a[k] for k in shared}, rel=1e-3, abs=1e-5)
    plain = PeftModel.from_pretrained(tiny_parts()[0], out.with_suffix(""))
    loaded = {name: weight for name, weight in plain.named_parameters() if "lora_" in name}
    assert loaded.keys() == one["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(loaded[name].detach(), weight, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_two_processes_solve_as_one_does_and_share_one_cache(tmp_path):
    one = align(tmp_path / "one.pt", 4, **SOLVED)
    out = tmp_path / "two.pt"
    for covariances in ("computed", "read"):
        launch(SCRIPT, out, 2, "closed_form", launcher=ACCELERATE)
        two = torch.load(out)
        assert two["processes"] == 2
        assert two["solution"] == pytest.approx(one["solution"], rel=1e-4), covariances
        for name, weight in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], weight, atol=1e-5, rtol=0)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "fsdp_version: 2"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "zero_stage=3"),
    ],
)
def test_sharding_that_the_passes_do_not_go_with_is_refused(state, said):
    with pytest.raises(AlignmentError, match=said):
        check_sharding(SimpleNamespace(**state))
    for fits in ({}, {"fsdp_plugin": None}, {"fsdp_plugin": SimpleNamespace(fsdp_version=2)}):
        check_sharding(SimpleNamespace(**fits))
    check_sharding(SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2)))
