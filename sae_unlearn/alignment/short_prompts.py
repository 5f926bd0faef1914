"""Short prompts of many relations on which predictions should stay. Ordinary text has few like them."""

from collections.abc import Iterable, Sequence

from sae_unlearn.alignment.entities import EntitySet


_RELATIONS: dict[str, str] = {
    "The opposite of {} is": "hot, early, rich, narrow, heavy, quiet, empty, brave, polite, sweet, ancient, shallow",
    "The past tense of {} is": "go, bring, swim, teach, forget, sing, choose, drive, freeze, hold, shake, throw",
    "The plural of {} is": "mouse, child, leaf, tooth, city, knife, goose, hero, wolf, crisis, foot, box",
    "A {} is a kind of": "sparrow, violin, hammer, lemon, salmon, sofa, tulip, sandal, helicopter, python, cabbage",
    "The color of {} is usually": "snow, grass, blood, coal, a ripe banana, the sea, gold, chalk, a pumpkin, rust",
    "{} is used to": "A ladder, A thermometer, A needle, A shovel, An umbrella, A compass, A kettle, A microscope",
    "The job of a {} is to": "dentist, pilot, baker, judge, farmer, plumber, nurse, translator, tailor, librarian",
    "At room temperature, {} is a": "helium, iron, mercury, water, oxygen, salt, olive oil, copper, nitrogen, sugar",
    "The company {} makes": "Toyota, Nike, Lego, Intel, Boeing, Nestle, Canon, Adobe, Volvo, Bayer, Airbus, Pepsi",
    "{} played the sport of": "Pele, Serena Williams, Magic Johnson, Babe Ruth, Tiger Woods, Usain Bolt",
    "The native language of {} is": "Victor Hugo, Dante, Cervantes, Goethe, Tolstoy, Mark Twain, Ibsen, Camus, Kafka",
    "The capital of {} is the city of": "Norway, Kenya, Peru, Greece, Canada, Ireland, Chile, Nepal, Finland, Ghana",
    "The currency of {} is the": "Norway, Japan, Mexico, Kenya, Peru, Canada, Sweden, Israel, Denmark, Brazil",
    "The language spoken in {} is": "Greece, Denmark, Iran, Austria, Brazil, Egypt, Israel, Finland, Japan, Cuba",
    "{} can be seen in": "The Eiffel Tower, Big Ben, The Taj Mahal, The Colosseum, Mount Fuji, Machu Picchu, Petra, "
    "Stonehenge, The Acropolis, Angkor Wat, The Matterhorn, Loch Ness, Uluru, Neuschwanstein Castle, The Grand Canyon, "
    "The Alhambra, Mount Etna, Chichen Itza, The Blue Mosque, The Little Mermaid, Table Mountain, Lake Baikal",
    "The traveler saw {} in": "an old monastery, the Black Forest, a glacier, the Danube Delta, Lake Titicaca, "
    "the Great Barrier Reef, the Serengeti, Mount Elbrus, the Dead Sea, Victoria Falls, Lake Balaton, the Dolomites",
    "{} was written by": "Hamlet, Don Quixote, War and Peace, Faust, Moby-Dick, The Odyssey, Dracula, Emma, Ulysses",
    "The continent of {} is": "Kenya, Peru, Norway, Nepal, Ghana, Chile, Laos, Italy, Egypt, Uruguay, Mongolia, Fiji",
}

SHORT_PROMPTS: tuple[str, ...] = tuple(
    relation.format(subject) for relation, subjects in _RELATIONS.items() for subject in subjects.split(", ")
)
"""The package's own, in English, without answers."""


def short_prompts(targets: EntitySet, given: Sequence[str] | None = None) -> list[str]:
    """Return the prompts that do not name a target: `given`, or the package's own if `given` is None."""
    names = [name.casefold() for target in targets for name in target.names]
    return [text for text in (SHORT_PROMPTS if given is None else given) if not _names_any(text, names)]


def _names_any(text: str, names: Iterable[str]) -> bool:
    words = f" {text.casefold()} "
    return any(f" {name} " in words for name in names)
