"""Spanish words for pictures, in the English of the gallery: a curated lexicon and rules, no model.

``assets/spanish.json`` says by topic which Spanish words and phrases stand for which English ones: people, belief and
myth, animals, plants, food, landscape, weather and the hours, sea and ships, town and house, things, clothes, the
body, music, war, feelings, actions, qualities, numbers, colours, media, genres, places, and names that differ in
Spanish. Plurals, feminines, diminutives and most verb forms follow from them (Porter's stemmer for Spanish, Snowball).

It is a glossary for search, not a translator. The order of words stays Spanish, a word has one meaning wherever no
phrase says otherwise ("rosa" is the colour, "un ramo de rosas" is flowers), negation and tense are lost, and a word
that the lexicon lacks stays as it is. No other language is known.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from snowballstemmer import SpanishStemmer

from shared.lexicon import GROUPS

LEXICON = Path(__file__).parent / "assets" / "spanish.json"

_ARTICLES = {"el", "la", "los", "las", "un", "una", "unos", "unas"}
_CONTRACTIONS = {"del": "de", "al": "a"}
_NAME_WEIGHT = 0.5  # of "el" or "flores" as a sign of Spanish: names carry them into English
_SHORTEST_STEM = 3
_ENGLISH_ENDINGS = (("", ""), ("s", ""), ("es", ""), ("ies", "y"), ("d", ""), ("ed", ""), ("ing", ""), ("ing", "e"))
_LONGEST_WORD = 40  # longer runs of letters are no words


@dataclass(frozen=True)
class Translation:
    """A query as it is searched for.

    Attributes:
        parts: each part of the query in English; the part itself where nothing in it was Spanish.
        spanish: the query as a whole was taken for Spanish. Otherwise single Spanish words may still be replaced.
    """

    parts: tuple[str, ...]
    spanish: bool


def to_english(*parts: str, knows: Callable[[str], bool] = lambda word: False) -> Translation:
    """The parts of one query, such as title and description, in English.

    The query is Spanish if more of its words are only Spanish than are English. Words of both ("pan", "once") count
    for neither, so alone they stay English; Spanish words that names carry into English ("el", "flores") count half.
    All of a Spanish query is translated: phrases first, the longest first, then words; articles, pronouns and
    prepositions are left out. In any other query only those words are replaced that the lexicon has, and neither
    English nor a name has, so an English query comes back as it was. Case and accents do not matter.

    Args:
        knows: whether the gallery has a word, in either language. Its words, names above all, are no sign of Spanish,
            and they stay where the translation would find nothing: a gallery may be Spanish itself.
    """
    lexicon = _lexicon()
    words = Counter(word for part in parts for word in re.findall(r"[^\W_]+", _fold(part)))
    if _is_spanish(words, lexicon, knows):
        return Translation(tuple(_translated(part, lexicon, knows) for part in parts), spanish=True)
    replacements = {
        word: lexicon.forms[word]
        for word in words.keys() & lexicon.forms.keys()
        if word not in lexicon.in_names and not lexicon.is_english(word) and not knows(word)
    }
    return Translation(tuple(_replaced(part, replacements) for part in parts) if replacements else parts, spanish=False)


def _is_spanish(words: Counter[str], lexicon: _Lexicon, knows: Callable[[str], bool]) -> bool:
    only_spanish, english, unknown = 0.0, 0, Counter()
    for word, count in words.items():
        if lexicon.is_english(word):
            english += 0 if lexicon.is_spanish(word) else count
        elif lexicon.is_spanish(word):
            in_names = word in lexicon.in_names or (word not in lexicon.function_words and knows(word))
            only_spanish += count * (_NAME_WEIGHT if in_names else 1)
        elif knows(word):
            english += count
        else:
            unknown[word] = count
    if not only_spanish:  # stems alone prove nothing: that of the English "sole" is that of the Spanish "sol"
        return False
    return only_spanish + sum(count for word, count in unknown.items() if lexicon.by_stem(word)) > english


def _translated(part: str, lexicon: _Lexicon, knows: Callable[[str], bool]) -> str:
    english: list[str] = []
    for clause in re.split(r"[^\w\s'’-]+", _fold(part)):
        words = _in_phrases(re.findall(r"[^\W_]+", clause))
        keys = [_key(word) for word in words]
        at = 0
        while at < len(words):
            longest = min(lexicon.longest_phrase, len(words) - at)
            lengths = (n for n in range(longest, 1, -1) if tuple(keys[at : at + n]) in lexicon.phrases)
            length = next(lengths, 1)
            if length > 1:
                english.append(lexicon.phrases[tuple(keys[at : at + length])])
            else:
                english.append(_word_in_english(words[at], lexicon, knows))
            at += length
    return " ".join(filter(None, english))


def _word_in_english(word: str, lexicon: _Lexicon, knows: Callable[[str], bool]) -> str:
    if word in lexicon.forms:
        translation = lexicon.forms[word]
        understood = any(knows(english) for english in translation.split())
        return translation if understood or not knows(word) else word
    if word in lexicon.function_words:
        return ""
    return word if knows(word) else lexicon.by_stem(word) or word


def _replaced(part: str, replacements: dict[str, str]) -> str:
    composed = unicodedata.normalize("NFC", part)
    replaced = re.sub(r"[^\W_]+", lambda match: replacements.get(_fold(match[0]), match[0]), composed)
    return part if replaced == composed else replaced


class _Lexicon:
    """The asset in the forms that a query is compared with; all keys are folded.

    Attributes:
        forms: single words, with their plurals and feminines → English.
        phrases: stems of two words or more, without articles → English.
        in_names: Spanish words that English texts have in names only.
    """

    def __init__(self, path: Path):
        asset = json.loads(path.read_text(encoding="utf-8"))
        self.function_words = frozenset(map(_fold, asset["function_words"]))
        self.in_names = frozenset(asset["in_names"])
        self.forms: dict[str, str] = {}
        self.phrases: dict[tuple[str, ...], str] = {}
        self._stems: dict[str, str] = {}
        entries = [
            (_in_phrases(_fold(spanish).split()), english)
            for topic in asset["topics"].values()
            for english, words in topic.items()
            for spanish in words
        ]
        for words, english in entries:
            if len(words) == 1:
                self.forms.setdefault(words[0], english)
            else:
                self.phrases.setdefault(tuple(map(_key, words)), english)
        self.longest_phrase = max(map(len, self.phrases))
        for word, english in list(self.forms.items()):
            self._stems.setdefault(_key(word), english)
            for form in _inflections(word):
                self.forms.setdefault(form, english)
        texts = " ".join((*(english for _, english in entries), *GROUPS))
        self._english = {*asset["also_english"], *ENGLISH_STOP_WORDS, *re.findall(r"[^\W_]+", _fold(texts))}

    def is_english(self, word: str) -> bool:
        return word not in self.in_names and any(
            word.endswith(ending) and word.removesuffix(ending) + base in self._english
            for ending, base in _ENGLISH_ENDINGS
        )

    def is_spanish(self, word: str) -> bool:
        return word in self.function_words or word in self.forms

    def by_stem(self, word: str) -> str | None:
        """The translation of a diminutive or of a verb form that is not listed."""
        diminutive = re.search(r"(?:c|ec)?(?:it|ill)[oa]s?$", word)
        bases = (word[: diminutive.start()] + ending for ending in ("o", "a", "e", "")) if diminutive else ()
        for base in bases:
            if base in self.forms:
                return self.forms[base]
        key = _key(word)
        return self._stems.get(key) if len(key) >= _SHORTEST_STEM else None


@cache
def _lexicon() -> _Lexicon:
    return _Lexicon(LEXICON)


def _inflections(word: str) -> Iterator[str]:
    """Plurals and feminines of a noun or an adjective."""
    bases = [word]
    if word.endswith("o"):
        bases.append(word[:-1] + "a")
    elif re.search(r"(?:or|on|an|in|es)$", word):
        bases.append(word + "a")
    for base in bases:
        if base != word:
            yield base
        if base.endswith("z"):
            yield base[:-1] + "ces"
        elif not base.endswith("s"):
            yield base + ("s" if base[-1] in "aeiou" else "es")
        elif base.endswith("es"):
            yield base + "es"


def _in_phrases(words: list[str]) -> list[str]:
    """Words as phrases are compared: "del" is "de", and an article counts only where there is nothing else."""
    spelled_out = [_CONTRACTIONS.get(word, word) for word in words]
    return [word for word in spelled_out if word not in _ARTICLES] or spelled_out


def _fold(text: str) -> str:
    if text.isascii():
        return text.casefold()
    decomposed = unicodedata.normalize("NFD", text.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


@lru_cache(maxsize=1 << 16)
def _key(word: str) -> str:
    """The stem of a folded Spanish word."""
    if len(word) > _LONGEST_WORD:
        return word
    # The stemmer knows these endings by their accents only, which queries may lack.
    accented = re.sub(r"ia(s|n|mos)?$", r"ía\1", re.sub(r"cion$", "ción", word))
    # A stemmer keeps state while it works, so each call has its own: threads may translate at once.
    return _fold(SpanishStemmer().stemWord(accented))
