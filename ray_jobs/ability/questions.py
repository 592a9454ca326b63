"""The questions of the offline tasks, and how an open answer is marked. lm-eval loads this file by its path.

* facts: what everybody knows, with three wrong answers each; asked as a choice, and openly through the chat template.
  An open answer counts when it holds the right word, so that a policy which refuses everything scores nothing;
* grammar: minimal pairs in the manner of BLiMP (arXiv 1912.00582): a verb after a subject and a phrase of the other
  number, and a reflexive pronoun;
* sums: additions and subtractions of small numbers, with near numbers as wrong answers.

All are written or generated here, the same every time.
"""

import random
import re
from typing import Any

from datasets import Dataset

FACTS = (
    ("What is the capital of France?", "Paris", "Rome", "Madrid", "Berlin"),
    ("What is the capital of Japan?", "Tokyo", "Beijing", "Seoul", "Bangkok"),
    ("What is the capital of Italy?", "Rome", "Paris", "Athens", "Vienna"),
    ("What is the capital of Egypt?", "Cairo", "Tunis", "Nairobi", "Tehran"),
    ("What is the capital of Russia?", "Moscow", "Warsaw", "Kyiv", "Prague"),
    ("On which continent is Kenya?", "Africa", "Asia", "Europe", "America"),
    ("On which continent is China?", "Asia", "Africa", "Europe", "Australia"),
    ("On which continent is Spain?", "Europe", "Asia", "Africa", "Antarctica"),
    ("Which language is spoken in Brazil?", "Portuguese", "Italian", "Dutch", "Greek"),
    ("Which language is spoken in Mexico?", "Spanish", "French", "German", "Russian"),
    ("What is the largest ocean on Earth?", "Pacific", "Atlantic", "Indian", "Arctic"),
    ("What is the longest wall in the world called?", "Great Wall", "Green Wall", "Old Gate", "High Tower"),
    ("Which planet do we live on?", "Earth", "Mars", "Venus", "Saturn"),
    ("Which planet is known as the red planet?", "Mars", "Venus", "Jupiter", "Neptune"),
    ("Which star gives the Earth its light?", "Sun", "Moon", "Polaris", "Sirius"),
    ("What goes around the Earth once a month?", "Moon", "Sun", "Mars", "Jupiter"),
    ("What does water turn into when it freezes?", "ice", "steam", "sand", "oil"),
    ("What does water turn into when it boils?", "steam", "ice", "dust", "salt"),
    ("Which gas do people need to breathe?", "oxygen", "helium", "methane", "neon"),
    ("Which force pulls things toward the ground?", "gravity", "friction", "magnetism", "sound"),
    ("What do bees make?", "honey", "milk", "silk", "bread"),
    ("What do cows give us to drink?", "milk", "juice", "tea", "wine"),
    ("What do hens lay?", "eggs", "seeds", "nuts", "leaves"),
    ("Which animal says meow?", "cat", "dog", "cow", "horse"),
    ("Which animal barks?", "dog", "cat", "sheep", "duck"),
    ("Which animal has a long trunk?", "elephant", "lion", "rabbit", "snake"),
    ("Which animal is called the king of the jungle?", "lion", "mouse", "goat", "frog"),
    ("What is a young dog called?", "puppy", "kitten", "calf", "lamb"),
    ("What is a young cat called?", "kitten", "puppy", "foal", "chick"),
    ("Where do fish live?", "water", "sand", "trees", "clouds"),
    ("What do plants need to grow, besides water?", "sunlight", "plastic", "metal", "paper"),
    ("Which part of a plant is under the ground?", "root", "flower", "leaf", "fruit"),
    ("What colour is the sky on a clear day?", "blue", "green", "red", "brown"),
    ("What colour is grass?", "green", "purple", "white", "orange"),
    ("What colour is fresh snow?", "white", "black", "yellow", "pink"),
    ("What colour is a ripe banana?", "yellow", "blue", "grey", "violet"),
    ("Which season comes after winter?", "spring", "autumn", "summer", "winter"),
    ("Which season is the coldest?", "winter", "summer", "spring", "autumn"),
    ("Which day comes after Monday?", "Tuesday", "Friday", "Sunday", "Thursday"),
    ("Which day comes before Sunday?", "Saturday", "Monday", "Wednesday", "Tuesday"),
    ("Which month comes after January?", "February", "August", "December", "June"),
    ("Which is the last month of the year?", "December", "March", "July", "October"),
    ("With which organ do we see?", "eyes", "ears", "nose", "knees"),
    ("With which organ do we hear?", "ears", "eyes", "teeth", "elbows"),
    ("Which organ pumps blood through the body?", "heart", "liver", "skin", "stomach"),
    ("With which organ do we think?", "brain", "lung", "kidney", "foot"),
    ("What do people wear on their feet?", "shoes", "gloves", "hats", "scarves"),
    ("What do people wear on their hands in winter?", "gloves", "shoes", "belts", "glasses"),
    ("What do you use to cut paper?", "scissors", "spoon", "pillow", "towel"),
    ("What do you use to write on paper?", "pen", "fork", "candle", "brick"),
    ("What do you use to unlock a door?", "key", "spoon", "cup", "ribbon"),
    ("What do you call the person who flies a plane?", "pilot", "farmer", "baker", "nurse"),
    ("Who bakes bread?", "baker", "pilot", "judge", "sailor"),
    ("Who teaches children at school?", "teacher", "plumber", "driver", "dentist"),
    ("Where do you borrow books?", "library", "bakery", "stable", "harbour"),
    ("What is bread made from?", "flour", "glass", "cotton", "stone"),
    ("What is wine made from?", "grapes", "potatoes", "carrots", "onions"),
    ("What is paper made from?", "wood", "iron", "milk", "salt"),
    ("Who wrote Romeo and Juliet?", "Shakespeare", "Einstein", "Columbus", "Mozart"),
    ("Which instrument has black and white keys?", "piano", "violin", "drum", "trumpet"),
)  # fmt: skip
NOUNS = (
    ("key", "keys"),
    ("dog", "dogs"),
    ("teacher", "teachers"),
    ("picture", "pictures"),
    ("friend", "friends"),
)
PLACES = (
    ("near the {}", "house", "houses"),
    ("behind the {}", "tree", "trees"),
    ("of the {}", "actor", "actors"),
)
VERBS = (("is here today", "are here today"), ("was very old", "were very old"), ("has been found", "have been found"),
         ("seems to be lost", "seem to be lost"))  # fmt: skip
REFLEXIVES = (
    ("The boy", "himself", "themselves"),
    ("The girl", "herself", "themselves"),
    ("The boys", "themselves", "himself"),
    ("The women", "themselves", "herself"),
    ("The king", "himself", "herself"),
    ("The queen", "herself", "himself"),
)
DEEDS = (
    "hurt {} in the garden.",
    "looked at {} in the mirror.",
    "taught {} to read.",
    "introduced {} to us.",
)


def facts(**_: Any) -> dict[str, Dataset]:
    return _test([_shuffled(question, answer, wrong) for question, answer, *wrong in FACTS])


def grammar(**_: Any) -> dict[str, Dataset]:
    """Each pair: the right sentence and the wrong one."""
    pairs = []
    for noun in NOUNS:
        for phrase, *other in PLACES:
            for verb in VERBS:
                for plural in (0, 1):
                    start = f"The {noun[plural]} {phrase.format(other[1 - plural])} "
                    pairs.append((f"{start}{verb[plural]}.", f"{start}{verb[1 - plural]}."))
    for who, right, wrong in REFLEXIVES:
        pairs += [(f"{who} {deed.format(right)}", f"{who} {deed.format(wrong)}") for deed in DEEDS]
    return _test([{"good": good, "bad": bad} for good, bad in pairs])


def sums(count: int = 100, **_: Any) -> dict[str, Dataset]:
    rng, rows, seen = random.Random(11), list[dict[str, Any]](), set[str]()
    while len(rows) < count:
        a, b = rng.randint(1, 30), rng.randint(1, 9)
        sign, result = ("+", a + b) if rng.random() < 0.5 else ("-", a - b)
        asked = f"{a} {sign} {b} ="
        if result < 0 or asked in seen:
            continue
        seen.add(asked)
        near = [result + step for step in (-10, -2, -1, 1, 2, 10) if result + step >= 0]
        rows.append(_shuffled(asked, str(result), [str(each) for each in rng.sample(near, 3)]))
    return _test(rows)


def mark(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 where the answer holds the right word, as a word of its own."""
    right = doc["choices"][doc["right"]]
    return {"acc": float(bool(re.search(rf"\b{re.escape(right)}s?\b", results[0], re.IGNORECASE)))}


def _shuffled(asked: str, answer: str, wrong: list[str]) -> dict[str, Any]:
    """A question whose right answer stands at a place that its own text decides."""
    choices = [answer, *wrong]
    random.Random(asked).shuffle(choices)
    return {"question": asked, "choices": choices, "right": choices.index(answer)}


def _test(rows: list[dict[str, Any]]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(rows)}
