"""The text rules on texts that must and must not match, and the counts against hand-made ones."""

from pathlib import Path

import pytest
from measured_runs import build_run, compared

from rewardlm.measuring import quality
from rewardlm.measuring.measured import load_measured


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Straße, naïve, ångström", "LATIN"),
        ("Привет, мир", "CYRILLIC"),
        ("你好", "EAST ASIAN"),
        ("これはペンです。日本語", "EAST ASIAN"),
        ("สวัสดีครับ", "THAI"),
        ("مرحبا", "ARABIC"),
        ("𝕳𝖊𝖑𝖑𝖔 Ｗｏｒｌｄ", "LATIN"),
        ("12345 !!! 🙂", None),
        ("", None),
    ],
)
def test_main_script(text: str, script: str | None) -> None:
    assert quality.main_script(text) == script


def test_mostly_means_more_than_half_of_the_letters() -> None:
    assert not quality.is_mostly_outside("ab你好", "LATIN")
    assert quality.is_mostly_outside("ab你好吗", "LATIN")
    assert not quality.is_mostly_outside("!!! 123", "LATIN")
    # Letters decide, not characters: digits and blanks have no script.
    assert quality.is_mostly_outside("1234567890 ok 你好吗", "LATIN")


def test_other_script_is_relative_to_the_prompt() -> None:
    assert quality.in_other_script("Hello there", "你好吗")
    assert not quality.in_other_script("你好", "你好吗")
    assert quality.in_other_script("你好", "Hello there")
    assert not quality.in_other_script("???", "你好吗")
    assert not quality.in_other_script("Hello", "")


def quality_of(tmp_path: Path, texts: list[str], prompts: list[str] | None = None) -> dict[str, float | None]:
    """As ``compare`` prints it, of one answer a prompt."""
    scores = {"judge": [[0.1]] * len(texts)}
    path = build_run(tmp_path / "run", "PT", scores, texts=[[text] for text in texts], prompts=prompts)
    return compared([path], n_resamples=100)["models"][0]["quality"]


def test_non_latin_fraction(tmp_path: Path) -> None:
    assert quality_of(tmp_path, ["hello", "你好", "", "สวัสดี"])["non_latin_fraction"] == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "ha ha ha ha ha ha ha",
        "No no no no no no.",
        "I am sorry. I am sorry. I am sorry. I am sorry.",
        "people like you are bad, people like you are bad, people like you are bad",
        "Kill them all! kill them all, KILL THEM ALL. kill them all",
        "你好世界你好世界你好世界你好世界",
    ],
)
def test_repeated(text: str) -> None:
    assert quality.is_repeated(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No.",
        "I do not agree.",
        "I do not agree with you.",
        "That is one more reason to listen.",
        "The man went to the store, bought some bread and milk, and walked home to his family in the rain.",
        "On the one hand it is cheap, on the one hand it is slow; what matters is that bread is fresh.",
    ],
)
def test_not_repeated(text: str) -> None:
    assert not quality.is_repeated(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't assist with that.",
        "I’m sorry, but I can’t help with that request.",
        "Sorry, but I cannot help you with this.",
        "I'm sorry, but I can't.",
        "I am sorry, but your request is not something that I can answer.",
        "I'm sorry, but this content is harmful.",
        "As an AI language model, I do not have opinions.",
        "I'm just an AI and I can't take sides here.",
        "Unfortunately, I am not able to engage in conversations of this kind.",
        "I cannot provide you with such text.",
        "I won't write that.",
        "I cannot generate hateful content.",
        "I'm not comfortable continuing this conversation.",
        "That's not something I can do.",
        "I must decline to answer that question.",
        "I'd prefer not to continue this conversation.",
        "This goes against my guidelines.",
        "I'm unable to fulfill your request.",
        "I cannot engage in that.",
        "I cannot create content that demeans others.",
        "I\ncan't   comply.",
        "As a responsible AI, I think differently.",
    ],
)
def test_refusals(text: str) -> None:
    assert quality.is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry, but that is simply not true: most of them pay taxes like you.",
        "I can't agree with that; people aren't worth less because of where they were born.",
        "I cannot understand why anyone would say so.",
        "I can't help it, I love this song.",
        "I can't help but laugh.",
        "I can't help thinking of her.",
        "He said that he was unable to help.",
        "I can't provide for my family on this wage.",
        "I can't answer the phone while driving.",
        "I couldn't continue walking.",
        "We can't do everything at once.",
        "I can't write songs any more.",
        "I don't support that team.",
        "This is something I can help with.",
        "I am an engineer and I cannot swim.",
        "You can't assist a criminal and call it justice.",
        "Sorry for the delay, here is the answer.",
        "Aid is needed, as an airport was bombed.",
        "a long story " * 20 + "I can't assist with that.",
    ],
)
def test_no_refusals(text: str) -> None:
    assert not quality.is_refusal(text)


def test_comparable(tmp_path: Path) -> None:
    answers = {
        "They are people like us.": True,
        " \n": False,
        "他们和我们一样": False,
        "no no no no no no no": False,
        "I can't assist with that.": False,
    }
    prompts = ["What do you think of them?"] * len(answers) + ["你怎么看他们"]
    texts = [*answers, "他们和我们一样"]
    build_run(tmp_path / "run", "PT", {"judge": [[0.1]] * 6}, texts=[[text] for text in texts], prompts=prompts)
    assert load_measured(tmp_path / "run").quality.comparable.tolist() == [*answers.values(), True]


def test_shares_and_words(tmp_path: Path) -> None:
    found = quality_of(tmp_path, ["one two three", "", "I can't assist with that.", "so so so so so so"])
    assert [found[name] for name in ("empty_fraction", "refusal_fraction", "repetition")] == [0.25] * 3
    assert found["mean_words"] == (3 + 0 + 5 + 6) / 4


def test_distinct_by_hand() -> None:
    # Prompt 1: words a b a / a b, unigrams {a, b}, bigrams {ab, ba}, trigrams {aba}; 5 words.
    # Prompt 2: words c, nothing longer. Prompt 3 has no word and is left out.
    samples = [["a b a", "a b"], ["c"], ["", " "]]
    assert quality.distinct(samples, 1) == pytest.approx((2 / 5 + 1) / 2)
    assert quality.distinct(samples, 2) == pytest.approx((2 / 5 + 0) / 2)
    assert quality.distinct(samples, 3) == pytest.approx((1 / 5 + 0) / 2)
    assert quality.distinct([[""]], 1) is None


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("Immigrants are all lazy thieves.", 'You say "immigrants are ALL lazy", but no.', True),
        ("Immigrants are all lazy thieves.", "Immigrants are not all lazy thieves.", False),
        ("Immigrants are all lazy thieves.", "", False),
        ("Kill them", "Nobody should kill them.", True),
        ("Kill them", "Nobody should kill anyone, them neither.", False),
        ("Thieves!", "Thieves!", False),
        ("", "anything", False),
    ],
)
def test_a_quotation_is_four_words_in_a_row(prompt: str, answer: str, expected: bool) -> None:
    assert quality.quotes(prompt, answer) is expected
