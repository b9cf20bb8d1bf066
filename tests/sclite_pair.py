"""Two hypotheses for 300 references, with errors so far apart that every aligner must find the same ones."""

import random

NUM_UTTERANCES = 300
SHARES = (0.16, 0.11)
"""Share of words with an error, by system."""


def sclite_pair() -> tuple[list[str], list[str], list[str]]:
    """References and the hypotheses of two systems."""
    rng = random.Random(11)
    texts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for utterance in range(NUM_UTTERANCES):
        reference = [f"w{utterance}x{position}" for position in range(3 + int(rng.random() * 18))]
        versions = [reference, *(corrupted(reference, share, rng) for share in SHARES)]
        for side, words in zip(texts, versions, strict=True):
            side.append(" ".join(words))
    return texts


def corrupted(reference: list[str], share: float, rng: random.Random) -> list[str]:
    words: list[str] = []
    was_wrong = False
    for position, word in enumerate(reference):
        number = rng.random()
        if was_wrong or number >= share:
            words.append(word)
            was_wrong = False
            continue
        was_wrong = True
        if number < share * 0.5:
            words.append(f"s{position}")
        elif number < share * 0.8:
            words += [word, f"i{position}"]
    return words
