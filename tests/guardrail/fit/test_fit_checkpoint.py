"""A fit that was killed goes on where it stopped, and ends as if it had not been."""

import pytest
import torch
from fitted_in_processes import WORDS, texts
from fitting import SAE, config_of, fit, random_sae, same_fit, tensors
from tiny_topic import tiny_tokenizer, topic_texts
from zoo import base_model

from sae_unlearn import GuardrailError, fit_guardrails
from sae_unlearn.guardrail.fit import passes as fit_passes


FORGET, RETAIN = texts("forget", 70), texts("retain", 90)


class Killed(Exception):
    pass


def counted(kill_after=None):
    """A model that counts its forward passes, and is killed in one of them."""
    model, calls = base_model("llama"), []

    def count(*_):
        calls.append(1)
        if len(calls) == kill_after:
            raise Killed

    model.model.layers[0].register_forward_pre_hook(count)
    return model, calls


def run(model=None, **kwargs):
    return fit(model, batch_size=2, **{"forget": FORGET, "retain": RETAIN} | kwargs)


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(fit_passes, "EVERY", 4)


@pytest.fixture(scope="module")
def unbroken():
    model, calls = counted()
    return run(model), len(calls)


def same(a, b):
    same_fit(a, b)
    assert config_of(a).calibration == config_of(b).calibration


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.2, 0.35, 0.6, 0.75, 0.95])
def test_a_resumed_fit_is_the_unbroken_one_exactly(unbroken, tmp_path, share):
    whole, passes = unbroken
    model, calls = counted(kill_after=max(2, int(share * passes)))
    with pytest.raises(Killed):
        run(model, checkpoint_dir=tmp_path)
    resumed, again = counted()
    same(whole, run(resumed, checkpoint_dir=tmp_path))
    assert len(calls) + len(again) >= passes
    if share >= 0.35:  # before, the median of the norms is not known, and nothing is written
        assert len(again) <= passes - len(calls) + 5  # no more than what had not been written down yet
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_resumed_fit_of_the_windowed_statistic_is_the_unbroken_one_exactly(tmp_path, share):
    options = {"statistic": "windowed", "num_gate_features": 12}
    model, calls = counted()
    whole = run(model, **options)
    broken, _ = counted(kill_after=int(share * len(calls)))
    with pytest.raises(Killed):
        run(broken, checkpoint_dir=tmp_path, **options)
    resumed, again = counted()
    same(whole, run(resumed, checkpoint_dir=tmp_path, **options))
    assert len(again) < len(calls) or share < 0.35


def test_a_fit_that_is_killed_again_and_again_comes_to_its_end(unbroken, tmp_path):
    for _ in range(60):
        model, _ = counted(kill_after=9 if list(tmp_path.iterdir()) else 30)
        try:
            done = run(model, checkpoint_dir=tmp_path)
        except Killed:
            continue
        same(unbroken[0], done)
        return
    pytest.fail("it never ended")


def killed(folder, **kwargs):
    model, _ = counted(kill_after=30)
    with pytest.raises(Killed):
        run(model, checkpoint_dir=folder, **kwargs)


def test_another_corpus_or_another_fit_is_refused(tmp_path):
    killed(tmp_path)
    for other in ({"forget": ["w50 w51", *FORGET]}, {"forget": FORGET[:20]}, {"retain": RETAIN[::-1]}):
        with pytest.raises(GuardrailError, match="checkpoint_dir"):
            run(checkpoint_dir=tmp_path, **other)
    with pytest.raises(GuardrailError, match=r"num_features .*5, got 4"):
        run(checkpoint_dir=tmp_path, num_features=4)
    changed = base_model("llama")
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    with pytest.raises(GuardrailError, match="model differ"):
        run(changed, checkpoint_dir=tmp_path)
    with pytest.raises(GuardrailError, match=r"fit: .*sae"):
        run(checkpoint_dir=tmp_path, sae=random_sae(d_sae=200))


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04" + 60 * b"\0"])
def test_a_file_that_is_not_sound_is_refused(tmp_path, content):
    (tmp_path / "fit-0-of-1.pt").write_bytes(content)
    with pytest.raises(GuardrailError, match=r"fit-0-of-1\.pt "):
        run(checkpoint_dir=tmp_path)


def test_no_text_is_in_the_file(tmp_path):
    killed(tmp_path)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert len(written) > 1000
    assert not any(text.encode() in written for text in (*FORGET, *RETAIN))


TOPICS = {"first": FORGET, "second": topic_texts("forget", 80, seed=6, words=WORDS)}


def run_several(model=None, folder=None, topics=TOPICS, retain=RETAIN):
    options = {"num_features": 5, "ratio_percentile": 90.0, "batch_size": 2, "progress": False}
    model = base_model("llama") if model is None else model
    return fit_guardrails(model, tiny_tokenizer(), SAE, topics, retain, checkpoint_dir=folder, **options)


@pytest.fixture(scope="module")
def unbroken_several():
    model, calls = counted()
    return run_several(model), len(calls)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.85, 0.97])
def test_a_resumed_fit_of_several_topics_is_the_unbroken_one_exactly(unbroken_several, tmp_path, share):
    whole, passes = unbroken_several
    model, calls = counted(kill_after=max(2, int(share * passes)))
    with pytest.raises(Killed):
        run_several(model, tmp_path)
    resumed, again = counted()
    done = run_several(resumed, tmp_path)
    for name in TOPICS:
        assert config_of(done, name).to_dict() == config_of(whole, name).to_dict()
        for key, tensor in tensors(whole, name).items():
            assert torch.equal(tensors(done, name)[key], tensor)
    if share >= 0.5:  # before, a median is not known, and nothing is written
        assert len(again) <= passes - len(calls) + 8
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_other_topics_are_not_gone_on_with(unbroken_several, tmp_path):
    model, _ = counted(kill_after=int(0.7 * unbroken_several[1]))
    with pytest.raises(Killed):
        run_several(model, tmp_path)
    one = {"first": FORGET}
    with pytest.raises(GuardrailError, match="fit: second "):
        run_several(folder=tmp_path, topics=one)
    with pytest.raises(GuardrailError, match=r"second: checkpoint_dir"):
        run_several(folder=tmp_path, topics=TOPICS | {"second": FORGET})
    with pytest.raises(GuardrailError, match="checkpoint_dir"):
        run_several(folder=tmp_path, retain=RETAIN[::-1])
