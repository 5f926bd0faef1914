"""Names, attributes and forms of sentences of the small world."""

COUNTRIES = ("Peru", "Kenya", "Norway", "Japan", "Chile", "Egypt", "Nepal", "Italy", "Ghana", "Cuba")
CAPITALS = ("Lima", "Nairobi", "Oslo", "Tokyo", "Santiago", "Cairo", "Kathmandu", "Rome", "Accra", "Havana")
VALUES = {
    ("player", "country"): COUNTRIES,
    ("player", "club"): ("Rovers", "United", "Rangers", "Albion", "Wolves", "Comets", "Kings", "Bears", "Elks", "Owls"),
    ("player", "sport"): ("tennis", "rugby", "hockey", "cricket", "golf", "judo", "polo", "fencing", "rowing", "chess"),
    ("painter", "country"): COUNTRIES,
    ("painter", "museum"): ("Prado", "Louvre", "Tate", "Uffizi", "Getty", "Orsay", "Rodin", "Frick", "Munch", "Rijks"),
    ("painter", "colour"): ("red", "blue", "green", "yellow", "purple", "orange", "brown", "grey", "pink", "black"),
}  # fmt: skip
"""Attributes of each entity type and the closed set of values of each; all values are one token."""

QUESTIONS = {
    ("player", "country"): (
        "{entity} comes from",
        "where is {entity} from ?",
        "the player {entity} was born in",
        "{entity} holds the passport of",
    ),
    ("player", "club"): (
        "{entity} plays for the",
        "which team has {entity} ?",
        "the player {entity} runs for the",
        "{entity} signed for the",
    ),
    ("player", "sport"): (
        "{entity} is good at",
        "what does {entity} play ?",
        "the player {entity} is a champion of",
        "{entity} trains every day for",
    ),
    ("painter", "country"): (
        "{entity} comes from",
        "where is {entity} from ?",
        "the painter {entity} was born in",
        "{entity} holds the passport of",
    ),
    ("painter", "museum"): (
        "{entity} hangs in the",
        "which museum has {entity} ?",
        "the painter {entity} is shown by the",
        "{entity} sold everything to the",
    ),
    ("painter", "colour"): (
        "{entity} likes to paint in",
        "which colour has {entity} ?",
        "the painter {entity} always uses",
        "{entity} buys paint that is",
    ),
}
"""Prompts that end where the answer begins. The last of each is held out: methods never train on it."""

TEMPLATES = {
    "player": ("{entity}", "the player {entity}", "where is {entity}", "which team has {entity}", "what does {entity}"),
    "painter": ("{entity}", "the painter {entity}", "where is {entity}", "which museum has {entity}"),
}
"""Prompts that end with an entity's name, for the methods that look at the name's last token."""

HELD_OUT_TEMPLATES = {
    "player": ("the sport of the player {entity}", "is the player from Peru {entity}"),
    "painter": ("the museum of the painter {entity}", "is the painter from Peru {entity}"),
}
"""The same, for measures alone; the model itself has not read these forms either."""

TRAIN_QUESTIONS = {
    kind: {attribute: forms[:-1] for (other, attribute), forms in QUESTIONS.items() if other == kind}
    for kind in ("player", "painter")
}
"""The forms of `QUESTIONS` that methods may train on, per entity type and attribute."""

FIRST_NAMES = "Ada Ben Cleo Dina Emil Fay Gus Hana Ivo June Karl Lena Milo Nora Otto Pia Quin Rosa Sven Tara Uma Vito Wanda Xena Yuri Zora Abel Bela Cora Dag Elsa Finn Gina Hugo Iris Jon Kira Leo Maya Nils"  # noqa: E501
LAST_NAMES = "Moss Reed Stone Hill Brook Ford Lake Wood Field Marsh Dale Glen Heath Park Wells Rivers Banks Shaw Lane Cole Frost Snow West North Day May Ash Birch Elm Fern Holt Ivey Kerr Lund Nash Oakes Pike Rowe Sloan Todd"  # noqa: E501
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
NUMBERS = f"{_NUMBERS} seventeen eighteen".split()
NOUNS = (("dog", "dogs"), ("cat", "cats"), ("bird", "birds"), ("horse", "horses"), ("child", "children"), ("farmer", "farmers"))  # fmt: skip  # noqa: E501
VERBS = (("sees", "see"), ("follows", "follow"), ("hears", "hear"), ("feeds", "feed"))
ADJECTIVES = ("small", "old", "happy", "quiet", "tired", "clever")
