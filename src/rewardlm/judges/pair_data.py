"""Examples for the judge of pairs, made from dialogues and from texts written for it.

Every exchange (a hateful user turn and the counter-narrative that answers it) gives one example of each class, so the
classes are balanced. Each example keeps its kind, because a judge that can tell a counter-narrative from a refusal may
still not tell it from hate. Examples are drawn anew each epoch, from a seed.

Controls are a second set: the same answers under prompts that they don't oppose. A judge that calls these
counter-narratives too goes by the answer's tone. An answer that speaks up for one group misses hate against another, or
against a person. Any objection misses a prompt that claims nothing or means nothing. An answer to another claim about
the same group may fit, so such a control is made only where the two claims share no word.
"""

from __future__ import annotations

import importlib.resources
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rewardlm.data.dialogues import normalised, pairs, split_by_component
from rewardlm.types import Dialogue

Part = Literal["train", "held_out"]
Hate = Mapping[str, Sequence[str]]  # hateful texts by target

# What a target is called in a sentence. An answer about one of these words is on topic for a prompt with another word
# of the same line.
_GROUPS = {
    "women": ("women", "girls", "wives and mothers", "feminists"),
    "men": ("men", "boys", "husbands"),
    "migrants": ("migrants", "immigrants", "foreigners"),
    "refugees": ("refugees", "asylum seekers", "Syrians", "Afghans"),
    "muslims": ("Muslims", "followers of Islam", "people who pray in mosques"),
    "jews": ("Jews", "Jewish people", "people who go to a synagogue", "Israelis"),
    "christians": ("Christians", "Catholics"),
    "sikhs": ("Sikhs",),
    "hindus": ("Hindus",),
    "black people": ("black people", "people of colour", "Africans"),
    "latinos": ("Latinos", "Mexicans"),
    "asians": ("Asians", "Chinese people", "Japanese people"),
    "roma": ("Roma", "gypsies", "travellers"),
    "indigenous people": ("indigenous people", "Native Americans"),
    "lgbt+": ("gay people", "gays and lesbians", "trans people", "homosexuals", "bisexuals"),
    "disabled": ("disabled people", "people in wheelchairs", "people with disabilities", "deaf people"),
    "people with mental illness": ("people with depression", "the mentally ill", "autistic people"),
    "overweight people": ("fat people", "overweight people"),
    "poor": ("poor people", "homeless people", "people on benefits", "the unemployed"),
    "older people": ("old people", "pensioners"),
    "young people": ("young people", "teenagers", "students"),
    "political opponents": ("people who vote differently", "liberals", "conservatives"),
    "rural people": ("country people", "farmers"),
    "urban people": ("city people",),
}
# What data sets call the same target, and targets so close that an answer about one may fit the other.
_SAME = {"poc": "black people", "islamophobia": "muslims"}
_CLOSE = {
    "refugees": ("migrants",),
    "latinos": ("migrants",),
    "people with mental illness": ("disabled",),
    "poor": ("migrants", "refugees", "roma"),
}


# How texts name the targets of most published hate. Words that may mean something else are left out.
_MENTIONS = {
    "women": r"wom[ae]n|girls?|females?|feminists?|wives",
    "migrants": r"(?:im)?migrants?|foreigners?",
    "refugees": r"refugees?|asylum seekers?",
    "muslims": r"muslims?|islam(?:ic)?",
    "jews": r"jews?|jewish",
    "christians": r"christians?|catholics?",
    "black people": r"blacks?|africans?|african[- ]americans?",
    "latinos": r"latin[oa]s?|mexicans?|hispanics?",
    "asians": r"asians?|chinese|japanese|koreans?",
    "indigenous people": r"indigenous|native americans?",
    "lgbt+": r"lgbtq?\+?|gays?|lesbians?|homosexuals?|bisexuals?|trans|transgender",
    "disabled": r"disabled|disabilit(?:y|ies)|wheelchairs?|crippled?",
    "people with mental illness": r"mentally ill|mental illness|autis(?:m|tic)|schizophrenics?",
    "overweight people": r"overweight|obese|fat (?:people|folks|women|men)",
    "poor": r"poor (?:people|folks)|homeless|the poor",
}
_MENTION = re.compile(
    rf"(?<!\w)(?:{'|'.join(f'(?P<t{n}>{names})' for n, names in enumerate(_MENTIONS.values()))})(?!\w)", re.IGNORECASE
)


# The ids of exchanges whose answers are our own short objections begin with one of these.
_MADE_UP = ("own:", "published:")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A hateful turn, the counter-narrative to it, and the other hateful turns of the same dialogue."""

    dialogue_id: str
    targets: frozenset[str]
    hate: str
    counter: str
    siblings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairExample:
    """What a pair judge learns from: ``label`` is one of PAIR_LABELS, ``kind`` says how the answer was made."""

    prompt: str
    answer: str
    label: str
    kind: str
    dialogue_id: str


@dataclass(frozen=True, slots=True)
class OwnTexts:
    """One part of our own lines, by file. Every fourth line is held out."""

    refusals: tuple[str, ...]
    agreements: tuple[str, ...]
    retorts: tuple[str, ...]
    objections: tuple[str, ...]
    chatter: tuple[str, ...]
    claims: tuple[str, ...]
    harmless: tuple[str, ...]


def own_texts(part: Part) -> OwnTexts:
    """The lines of ``pair_texts/*.txt`` that train, or those that are held out."""

    def some(name: str) -> tuple[str, ...]:
        return tuple(line for number, line in enumerate(_lines(name)) if (number % 4 == 3) == (part == "held_out"))

    names = ("refusals", "agreements", "retorts", "objections", "chatter", "claims", "harmless")
    return OwnTexts(*(some(name) for name in names))


def own_exchanges() -> list[Exchange]:
    """Blunt claims with direct answers, ``pair_texts/exchanges.txt``: all of them train, whatever the dialogues are."""
    rows = [line.split(" | ") for line in _lines("exchanges")]
    return [
        Exchange(f"own exchange {number}", _targets(target), hate, counter, ())
        for number, (target, hate, counter) in enumerate(rows, 1)
    ]


def own_pairs(name: str) -> list[tuple[str, str]]:
    """The lines of ``pair_texts/{name}.txt`` that are two texts each."""
    rows = (line.split(" | ") for line in _lines(name))
    return [(left, right) for left, right in rows]


def exchanges(dialogues: Sequence[Dialogue]) -> list[Exchange]:
    """Every user turn with its answer. Blank ones are dropped, as by ``data.dialogues.pairs``, and so are repeats."""
    targets, hate = {}, {}
    for dialogue in dialogues:
        targets[dialogue.id] = _targets(dialogue.target)
        hate[dialogue.id] = [turn.text for turn in dialogue.turns if turn.role == "user" and turn.text.strip()]
    found: dict[tuple[str, str], Exchange] = {}
    for pair in pairs(dialogues).pairs:
        turn, answer = pair.history[-1].text, pair.answer.text
        siblings = tuple(text for text in hate[pair.dialogue_id] if text != turn)
        exchange = Exchange(pair.dialogue_id, targets[pair.dialogue_id], turn, answer, siblings)
        found.setdefault((normalised(turn), normalised(answer)), exchange)
    return list(found.values())


def split_exchanges(dialogues: Sequence[Dialogue], *, validation: float) -> tuple[list[Exchange], list[Exchange]]:
    """(train, held out): no user turn and no answer is in both.

    ``split_by_component`` separates user turns, but answers recur in other components (one in five in DIALOCONAN),
    so a training exchange whose answer is held out is dropped.
    """
    train, held_out = split_by_component(dialogues, validation=validation)
    kept_out = exchanges(held_out)
    answers = {normalised(exchange.counter) for exchange in kept_out}
    return [exchange for exchange in exchanges(train) if normalised(exchange.counter) not in answers], kept_out


def made_up(texts: OwnTexts, n: int, seed: str) -> list[Exchange]:
    """``n`` short exchanges made from our own lines: a claim about a group, and an objection that names the group.

    The same lines about other groups give answers that are off topic by a single word. These teach the judge to
    compare the two texts instead of reading the answer's tone.
    """
    rng = random.Random(seed)
    named = [line for line in texts.objections if "{group}" in line]
    plain = [line for line in texts.objections if "{group}" not in line]
    targets = sorted(_GROUPS)
    found = []
    for number in range(n):
        target = rng.choice(targets)

        def about(line: str, words: tuple[str, ...] = _GROUPS[target]) -> str:
            return _filled(line, rng.choice(words))

        counter = [about(rng.choice(named))] + [rng.choice(plain) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
        rng.shuffle(counter)
        hate, *siblings = (about(line) for line in rng.sample(texts.claims, 3))
        found.append(Exchange(f"{_MADE_UP[0]}{number}", _targets(target), hate, " ".join(counter), tuple(siblings)))
    return found


def target_of(text: str) -> str | None:
    """The target that ``text`` names, None where it names none or several."""
    names = list(_MENTIONS)
    found = {names[int(str(match.lastgroup)[1:])] for match in _MENTION.finditer(text)}
    return found.pop() if len(found) == 1 else None


def names_group(text: str) -> bool:
    """Whether ``text`` names a target, or several."""
    return _MENTION.search(text) is not None


def answered(hate: Hate, source: Sequence[Exchange], texts: OwnTexts, n: int, seed: str) -> list[Exchange]:
    """``n`` exchanges from published hateful texts, evenly over targets: each gets an objection of ours to its group.

    Half of the objections continue with an answer from ``source`` to other hate against the same target, because the
    answers of a measured model are longer. Empty where there is no ``hate``.
    """
    rng = random.Random(seed)
    named = [line for line in texts.objections if "{group}" in line]
    answers = {target: [exchange.counter for exchange in source if target in exchange.targets] for target in hate}
    found = []
    for number in range(n if hate else 0):
        target = rng.choice(sorted(hate))
        claim = rng.choice(hate[target])
        counter = _filled(rng.choice(named), rng.choice(_GROUPS[target]))
        if answers[target] and rng.random() < 0.5:
            counter = f"{counter} {rng.choice(answers[target])}"
        found.append(Exchange(f"{_MADE_UP[1]}{number}", frozenset({target}), claim, counter, ()))
    return found


def draw(source: Sequence[Exchange], texts: OwnTexts, seed: str, hate: Hate | None = None) -> list[PairExample]:
    """One example of each class for every exchange, in order; the same ``seed`` draws the same ones.

    With ``hate``, half of the hateful answers come from these texts, by target.
    """
    drawer = _Drawer(source, texts, random.Random(seed), hate or {})
    return [example for exchange in source for example in drawer.of(exchange)]


def controls(
    source: Sequence[Exchange], texts: OwnTexts, seed: str, n: int = 1, toxic: Sequence[str] = ()
) -> list[PairExample]:
    """``n`` controls for every exchange: its answer under a prompt that it doesn't oppose. All are off topic.

    Kinds: ``other target`` (hate against another one), ``other claim`` (about the same target, without a
    common word), ``harmless``, ``meaningless``, and ``toxic`` where there are such texts, which name no group.
    """
    drawer = _Drawer(source, texts, random.Random(seed), {})
    return [drawer.control(exchange, toxic) for exchange in source for _ in range(n)]


def permuted(source: Sequence[Exchange], seed: int) -> list[PairExample]:
    """Every answer under the prompt of another dialogue, whatever its target: a seeded derangement of the prompts."""
    order = random.Random(seed).sample(range(len(source)), len(source))
    found = []
    for place, at in enumerate(order):
        mine = source[at]
        others = (source[order[(place + step) % len(order)]] for step in range(1, len(order)))
        other = next((found for found in others if found.dialogue_id != mine.dialogue_id), None)
        if other is not None:
            found.append(PairExample(other.hate, mine.counter, "off_topic", "permuted", mine.dialogue_id))
    return found


def thinned(example: PairExample, rng: random.Random, share: float = 0.1) -> PairExample:
    """``example`` without some words of either text, so that whole lines can't be learnt by heart."""

    def thin(text: str) -> str:
        words = text.split()
        kept = [word for word in words if rng.random() >= share]
        return " ".join(kept or words)

    return replace(example, prompt=thin(example.prompt), answer=thin(example.answer))


class _Drawer:
    def __init__(self, source: Sequence[Exchange], texts: OwnTexts, rng: random.Random, hate: Hate) -> None:
        self._texts, self._rng, self._hate = texts, rng, hate
        self._by_target: dict[frozenset[str], list[Exchange]] = {}
        self._by_other: dict[frozenset[str], list[Exchange]] = {}
        for targets in {exchange.targets for exchange in source}:
            self._by_target[targets] = [exchange for exchange in source if exchange.targets & targets]
            self._by_other[targets] = [exchange for exchange in source if _far(exchange.targets, targets)]

    def of(self, exchange: Exchange) -> list[PairExample]:
        return [
            self._counter_narrative(exchange),
            self._agreement(exchange),
            self._refusal(exchange),
            self._off_topic(exchange),
        ]

    def _counter_narrative(self, exchange: Exchange) -> PairExample:
        rng, answer, kind = self._rng, exchange.counter, "counter-narrative"
        # The short objections are about groups; to a person's rudeness they are beside the point.
        draw = rng.random() if self._groups(exchange) else rng.uniform(0.4, 1)
        if draw < 0.15:
            answer, kind = self._line(self._texts.objections, exchange), "objection"
        elif draw < 0.4:
            answer = f"{self._line(self._texts.objections, exchange)} {answer}"
        elif draw < 0.5:
            # An answer that quotes the hate in order to oppose it is no agreement.
            start = rng.choice(("You say", "You write", "Why do you think", "Nobody can seriously claim"))
            answer = f'{start} "{_words(exchange.hate, 3, 10, rng)}"? {answer}'
        elif draw < 0.6:
            answer = _sentences(answer)[0]
        return self._made(exchange, exchange.hate, answer, "counter_narrative", kind)

    def control(self, exchange: Exchange, toxic: Sequence[str]) -> PairExample:
        rng, draw, others = self._rng, self._rng.random(), self._by_other[exchange.targets]
        if draw < 0.15 and not exchange.dialogue_id.startswith(_MADE_UP):
            # Our short objections fit every claim about their group.
            mine, kind = _content(exchange.hate), "other claim"
            others = [
                other
                for other in self._by_target[exchange.targets]
                if other.dialogue_id != exchange.dialogue_id and not mine & _content(other.hate)
            ]
        else:
            kind = "other target"
        if draw < 0.5 and others:
            prompt = rng.choice(others).hate
        elif draw < 0.7 and toxic:
            prompt, kind = rng.choice(toxic), "toxic"
        elif draw < 0.9:
            prompt, kind = self._line(self._texts.harmless, exchange), "harmless"
        else:
            prompt, kind = self._scrambled(), "meaningless"
        drawn = self._counter_narrative(exchange)
        # An objection alone, such as "How do you know?", may well fit another claim.
        answer = exchange.counter if drawn.kind == "objection" and kind.startswith("other") else drawn.answer
        return PairExample(prompt, answer, "off_topic", kind, exchange.dialogue_id)

    def _agreement(self, exchange: Exchange) -> PairExample:
        rng, prompt = self._rng, exchange.hate
        draw = rng.random()
        if draw < 0.35:
            answer, kind = self._hate_like(exchange), "hateful turn"
        elif draw < 0.6:
            answer, kind = f"{self._line(self._texts.agreements, exchange)} {self._hate_like(exchange)}", "agreed hate"
        elif draw < 0.75:
            answer, kind = self._line(self._texts.agreements, exchange), "agreement"
            if rng.random() < 0.4:
                answer += " " + self._line(self._texts.agreements, exchange)
        elif draw < 0.83:
            answer, kind = prompt, "echo"
            if rng.random() < 0.5:
                answer = f"{self._line(self._texts.agreements, exchange)} {answer}"
        elif draw < 0.9 and len(prompt.split()) >= 8:
            words = prompt.split()
            at = rng.randrange(3, len(words) - 2)
            prompt, answer, kind = " ".join(words[:at]), " ".join(words[at:]), "continuation"
        else:
            answer, kind = self._line(self._texts.retorts, exchange), "abuse"
            if rng.random() < 0.3:
                answer += " " + self._line(self._texts.retorts, exchange)
        return self._made(exchange, prompt, answer, "agreement", kind)

    def _refusal(self, exchange: Exchange) -> PairExample:
        answer = self._line(self._texts.refusals, exchange)
        if self._rng.random() < 0.2:
            answer += " " + self._line(self._texts.refusals, exchange)
        return self._made(exchange, exchange.hate, answer, "refusal", "refusal")

    def _off_topic(self, exchange: Exchange) -> PairExample:
        rng, others = self._rng, self._by_other[exchange.targets]
        draw = rng.random()
        if draw < 0.5 and others:
            # About another target: an answer about the same one may well fit.
            answer, kind = rng.choice(others).counter, "other's answer"
        elif draw < 0.75:
            answer, kind = rng.choice(self._texts.chatter), "chatter"
        else:
            answer, kind = self._scrambled(), "scrambled"
        return self._made(exchange, exchange.hate, answer, "off_topic", kind)

    def _made(self, exchange: Exchange, prompt: str, answer: str, label: str, kind: str) -> PairExample:
        rng = self._rng
        if rng.random() < 0.5:
            # A measured model's answers are cut after some tokens, in the middle of a sentence.
            answer = " ".join(answer.split()[: rng.randint(10, 40)])
        if rng.random() < 0.1 and kind != "continuation":
            # So are prompts that a language model is asked to continue.
            words = prompt.split()
            prompt = " ".join(words[: rng.randint(min(len(words), 6), len(words))])
        return PairExample(prompt, answer, label, kind, exchange.dialogue_id)

    def _hate_like(self, exchange: Exchange) -> str:
        """Another hateful turn of the dialogue, or one about the same target; the prompt itself where there is none."""
        published = [text for target in sorted(exchange.targets) for text in self._hate.get(target, ())]
        if published and self._rng.random() < 0.5:
            return self._rng.choice(published)
        if exchange.siblings and self._rng.random() < 0.4:
            return self._rng.choice(exchange.siblings)
        others = [other.hate for other in self._by_target[exchange.targets] if other.hate != exchange.hate]
        return self._rng.choice(others) if others else exchange.hate

    def _scrambled(self) -> str:
        """What a small model says at high temperature: pieces of unrelated texts, or their words in any order."""
        rng = self._rng
        pieces = [_words(rng.choice(self._texts.chatter), 3, 12, rng) for _ in range(rng.randint(2, 3))]
        words = " ".join(pieces).split()
        if rng.random() < 0.3:
            rng.shuffle(words)
        return " ".join(words)

    @staticmethod
    def _groups(exchange: Exchange) -> list[str]:
        return [group for target in sorted(exchange.targets) for group in _GROUPS.get(target, ())]

    def _line(self, lines: Sequence[str], exchange: Exchange) -> str:
        groups = self._groups(exchange)
        line = self._rng.choice(lines if groups else [line for line in lines if "{group}" not in line])
        return _filled(line, self._rng.choice(groups)) if "{group}" in line else line


def _lines(name: str) -> list[str]:
    file = importlib.resources.files("rewardlm.judges") / "pair_texts" / f"{name}.txt"
    return [line for line in file.read_text("utf-8").splitlines() if line and not line.startswith("#")]


def _targets(label: str | None) -> frozenset[str]:
    """What a dialogue is about, from its label, which may name two targets."""
    return frozenset(_SAME.get(name, name) for name in (label or "").lower().split("/"))


def _far(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether an answer about one is certainly off the topic of the other."""
    near = one.union(*(_CLOSE.get(name, ()) for name in one))
    return not near & other and not one & other.union(*(_CLOSE.get(name, ()) for name in other))


def _filled(line: str, group: str) -> str:
    line = line.replace("{group}", group)
    return line[0].upper() + line[1:]


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def _content(text: str) -> set[str]:
    """The words that are likely to carry a claim: those of five letters or more, names of groups left out."""
    return set(re.findall(r"[^\W\d_]{5,}", _MENTION.sub(" ", text).casefold()))


def _words(text: str, shortest: int, longest: int, rng: random.Random) -> str:
    """Some words of ``text`` in a row."""
    words = text.split()
    n = min(len(words), rng.randint(shortest, longest))
    at = rng.randint(0, len(words) - n)
    return " ".join(words[at : at + n])
