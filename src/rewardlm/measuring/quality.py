"""What a toxicity score doesn't see: whether an answer is empty, in another script, repeated or a refusal.

Pure functions of text, by fixed rules that a reader can check; no model is needed. What needs a model
(similarity with the prompt, perplexity) is computed elsewhere and stored in the run.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from rewardlm.measuring.refusals import is_refusal as is_refusal

LATIN = "LATIN"

# Japanese mixes three scripts in one sentence, so they count as one; the price is that a Chinese answer to a
# Japanese prompt isn't seen.
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "BOPOMOFO"}

# Scripts without blanks between words (Thai, Lao, Burmese, Khmer, kana, Han): there each letter is a word.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|['’])+")


@lru_cache(maxsize=65536)
def _script_of(character: str) -> str | None:
    """Script of a letter by its Unicode name; None for what isn't a letter."""
    if not character.isalpha():
        return None
    words = unicodedata.name(character, "UNKNOWN").split()
    # Styled and wide forms (FULLWIDTH LATIN …, MATHEMATICAL BOLD CAPITAL A) are read as what they show.
    if words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    if words[0] in ("MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER", "MODIFIER"):
        plain = unicodedata.normalize("NFKC", character)[0]
        words = unicodedata.name(plain, "UNKNOWN").split() if plain != character else words
    # ª, º and µ are letters of Latin text.
    if character in "ªºµ":
        return LATIN
    return "EAST ASIAN" if words[0] in _EAST_ASIAN else words[0]


def scripts(text: str) -> Counter[str]:
    """How many letters of each script the text has; digits, punctuation and emoji have none."""
    found: Counter[str] = Counter()
    for character, count in Counter(text).items():
        script = _script_of(character)
        if script is not None:
            found[script] += count
    return found


def main_script(text: str) -> str | None:
    """The script of most letters (``LATIN``, ``CYRILLIC``, ``EAST ASIAN``, …); None if there is no letter."""
    found = scripts(text)
    return found.most_common(1)[0][0] if found else None


def is_mostly_outside(text: str, script: str) -> bool:
    """More than half of the letters belong to other scripts. A text without letters never counts as outside."""
    if script == LATIN and text.isascii():
        return False
    found = scripts(text)
    return 2 * found[script] < found.total()


def in_other_script(prompt_text: str, response_text: str) -> bool:
    """The response is mostly outside of the prompt's main script. Never so where the prompt has no letter."""
    script = main_script(prompt_text)
    return script is not None and is_mostly_outside(response_text, script)


def is_repeated(text: str) -> bool:
    """One 4-gram of words, said at least twice, covers half of the text's words or more.

    Case and punctuation don't count. It must occur twice: in a text of eight words, any 4-gram is half of it.
    """
    return 2 * repeated_share(text) >= 1


def repeated_share(text: str) -> float:
    """The largest share of the text's words that one 4-gram covers by being said at least twice; 0 if none is."""
    words = _WORD.findall(text.casefold())
    places: dict[tuple[str, ...], list[int]] = {}
    for start in range(len(words) - 3):
        places.setdefault(tuple(words[start : start + 4]), []).append(start)
    # Occurrences may overlap (ha ha ha …): count each word once.
    covered = [4 + sum(min(4, b - a) for a, b in pairwise(starts)) for starts in places.values() if len(starts) > 1]
    return max(covered) / len(words) if covered else 0.0


def words_in_fours(text: str) -> set[tuple[str, ...]]:
    """Every run of four words of the text; case and punctuation don't count."""
    words = _WORD.findall(text.casefold())
    return set(zip(words, words[1:], words[2:], words[3:], strict=False))


def quotes(prompt_text: str, response_text: str) -> bool:
    """The response repeats four consecutive words of the prompt, or all of a prompt that has only two or three."""
    fours = words_in_fours(prompt_text)
    if fours:
        return not fours.isdisjoint(words_in_fours(response_text))
    words = _WORD.findall(prompt_text.casefold())
    answer = _WORD.findall(response_text.casefold())
    n = len(words)
    return n > 1 and any(answer[start : start + n] == words for start in range(len(answer) - n + 1))


def distinct(samples_by_prompt: Iterable[Sequence[str]], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): a prompt's unique n-grams over its samples' words, averaged over prompts.

    Words are split at white space; an n-gram doesn't reach from one sample into the next. Prompts without a
    word are left out.
    """
    ratios = []
    for samples in samples_by_prompt:
        unique: set[tuple[str, ...]] = set()
        total = 0
        for sample in samples:
            words = sample.split()
            total += len(words)
            unique.update(zip(*(words[i:] for i in range(n)), strict=False))
        if total:
            ratios.append(len(unique) / total)
    return sum(ratios) / len(ratios) if ratios else None
