"""What a request may ask of a guarded vLLM, and which layers are guarded, without vLLM."""

from itertools import product
from types import SimpleNamespace

import pytest
from fails_closed import stopped
from served import save_guardrail, save_model
from torch import nn

from sae_unlearn import GuardrailError
from sae_unlearn.engines.vllm.layers import find_layers
from sae_unlearn.engines.vllm.plugin import check_request
from sae_unlearn.engines.vllm.settings import KEY, Settings
from sae_unlearn.errors import GuardrailUnsupported


NAMES = ("guard", "second")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("requests")
    model = save_model(folder, "llama")
    paths = [str(save_guardrail(folder, model, name)) for name in NAMES]
    refuse = save_guardrail(folder, model, "refuse", action="refuse", refusal_ids=[201, 202])
    found = {chooses: Settings(paths, per_request=chooses) for chooses in (True, False)}
    return found | {"refuse": Settings([*paths, str(refuse)], per_request=True)}


def request(extra=None, salt=None, prompt_logprobs=None, **more):
    plain = dict.fromkeys(("prompt_embeds", "pooling_params", "resumable", "mm_features")) | more
    params = SimpleNamespace(extra_args=extra, prompt_logprobs=prompt_logprobs)
    return SimpleNamespace(**plain, sampling_params=params, cache_salt=salt)


def salt_of(settings, choice, salt):
    asked = request(None if choice is None else {KEY: choice}, salt)
    check_request(asked, settings)
    return asked.cache_salt


def test_no_salt_of_a_client_is_that_of_another_choice(settings):
    """Else it would find cached blocks which the guardrails in force have not seen, and stop the engine."""
    seen = {}
    salts = [None, "", "x", f"|{KEY}:second"]
    for _ in range(2):  # the second time with all salts that the first has given
        for choice, salt in product((None, "guard", "second", ""), list(salts)):
            found = salt_of(settings[True], choice, salt)
            assert seen.setdefault(found, (choice, salt)) == (choice, salt)
            salts.append(found)
    assert seen[None] == (None, None)  # one cache for all who ask for nothing


def test_without_choices_salts_stay(settings):
    assert [salt_of(settings[False], None, salt) for salt in (None, "x")] == [None, "x"]


@pytest.mark.parametrize(
    "choice", [0, 1.5, False, {}, ["guard", 3], [["guard"]], "guard;second", "Guard", "guard,", ","]
)
def test_a_choice_of_another_type_or_name_is_refused(settings, choice):
    with pytest.raises(GuardrailError, match=KEY):
        check_request(request({KEY: choice}), settings[True])


def test_logprobs_of_a_prompt_are_refused_where_a_guardrail_refuses(settings):
    for count in (0, 3):
        with stopped("a refusal in prompt_logprobs", GuardrailError, "refuse refuses", "request"):
            check_request(request(prompt_logprobs=count), settings["refuse"])
    check_request(request({KEY: "guard"}, prompt_logprobs=3), settings["refuse"])
    check_request(request(prompt_logprobs=3), settings[True])


def test_images_are_refused(settings):
    with stopped("a request with mm_features", GuardrailError, "images, sound or video", "request"):
        check_request(request(mm_features=[object()]), settings[True])
    check_request(request(mm_features=[]), settings[True])


@pytest.mark.parametrize("name", ["a,b", " a", "a "])
def test_names_that_no_request_could_list_are_refused_at_the_start(name):
    Settings([f"x/{name}"])
    with pytest.raises(GuardrailError, match=rf"got {name!r}\.") as caught:
        Settings([f"x/{name}"], per_request=True)
    assert caught.value.subject == "sae_guardrail.paths"
    with pytest.raises(GuardrailError, match=r"got ''\.") as caught:
        Settings(["/"])
    assert caught.value.subject == "sae_guardrail.paths"


def test_a_tower_with_as_many_layers_as_the_language_model_is_not_searched():
    def model_of(*names):
        found = nn.Module()
        for name in names:
            setattr(found, name, nn.ModuleList([nn.Identity(), nn.Identity()]))
        return found

    model = nn.Module()
    model.tower, model.language = model_of("layers"), model_of("layers")
    with pytest.raises(GuardrailUnsupported, match=r"language.layers.*tower.layers"):
        find_layers(model, 2)
    model.get_language_model = lambda: model.language  # as vLLM's models of text and images have
    assert find_layers(model, 2) is model.language.layers
    model.language.more = model_of("layers").layers
    with pytest.raises(GuardrailUnsupported, match=r": expected .* 2 .* got "):
        find_layers(model, 2)
