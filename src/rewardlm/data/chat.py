"""How turns become tokens: chat template, antecedents, and the loss on the answer only.

Text from users and data sets is always encoded as plain text: a ``<|im_end|>`` inside a comment must
not end a turn. So a template is rendered with stand-ins where the texts go; only what the *template*
writes may become a control token: one that is flagged special, or that was added to the vocabulary and occurs in the
template (``<think>``). Other added tokens are ordinary words. Between control tokens, template and text are encoded
together, as the tokenizer would encode the whole, with one cut: at the start of the answer, because that is where a
prompt ends when the model is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rewardlm.errors import ConfigError, ModelError
from rewardlm.types import Message

# Private-use characters frame the number of a turn; they are removed from texts, so no text can forge one.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_STAND_IN = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training sample: ``input_ids``, and a mask of the same length that is 1 where the token is the answer's."""

    input_ids: list[int]
    completion_mask: list[int]


class ChatFormat:
    """Encodes prompts and prompt/answer pairs for one tokenizer and one template.

    ``template``: ``auto`` is the tokenizer's own chat template, or the plain one where it has none; ``plain``
    is ``User: …\\nAssistant: …``, with role names of your choice; anything else is the path of a Jinja template.
    ``stop_strings`` end an answer in formats that don't end turns with a token of their own.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str = "auto",
        user: str = "User:",
        assistant: str = "Assistant:",
        system: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.user, self.assistant = user, assistant
        self.stop_strings: tuple[str, ...] = ()
        if template == "auto":
            self._template = tokenizer.chat_template
        elif template == "plain":
            self._template = None
        else:
            try:
                self._template = Path(template).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"chat.template {template!r}: expected 'auto', 'plain' or a readable Jinja file ({error})"
                ) from None
        self.name = (
            "model"
            if template == "auto" and self._template
            else ("plain" if self._template is None else Path(template).name)
        )
        if self._template is None:
            self.stop_strings = (f"\n{user}",)
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | {*tokenizer.all_special_tokens}
        # A token of one character can't be kept out of a text that holds the character.
        written = {str(token) for token in added if len(str(token)) > 1 and str(token) in (self._template or "")}
        self._special = _any_of(special)
        self._control = _any_of(special | written)
        # Any text may turn into the unknown token.
        self._control_ids = {*tokenizer.convert_tokens_to_ids(sorted(special | written))} - {tokenizer.unk_token_id}

    def encode_prompt(self, turns: Sequence[Message]) -> list[int]:
        """Token ids of a conversation that ends with the user's turn, up to where the answer begins."""
        return self._encode(*self._render([*turns], generation_prompt=True))

    def encode_pair(self, history: Sequence[Message], answer: Message, *, ended: bool = True) -> Encoded:
        """A training sample: the prompt's ids as ``encode_prompt`` gives them, then the answer, with its end if it
        ``ended``.
        """
        prompt_text, texts = self._render([*history], generation_prompt=True)
        whole_text, whole_texts = self._render([*history, answer], generation_prompt=False)
        # A template may write something else in front of a given answer than in front of a requested one (an empty
        # thinking block, say). The model will see the latter, so the sample starts with the prompt.
        mark = f"{_OPEN}{len(whole_texts) - 1}{_CLOSE}"
        start = whole_text.rindex(mark)
        # White space between prompt and answer ("Assistant:" and a blank, "[/INST]" and a blank) belongs to the answer:
        # byte-level tokenizers join it with the first word.
        between = whole_text[len(prompt_text) : start] if whole_text.startswith(prompt_text) else ""
        tail = (between if between.isspace() else "") + whole_text[start:]
        prompt = self._encode(prompt_text, texts)
        cut = self._up_to_end_of_turn(tail) if ended else tail[: tail.index(_CLOSE) + len(_CLOSE)]
        completion = self._encode(cut, whole_texts)
        return Encoded(prompt + completion, [0] * len(prompt) + [1] * len(completion))

    def end_of_turn(self) -> int | None:
        """The token that the template ends an answer with; None if it can't write one or ends it by text alone.

        Base models often name another end token (``<|endoftext|>``) than the template that they are trained with
        (``<|im_end|>``). Without the template's token their answers would never end.
        """
        if self._special is None:
            return None
        try:
            rendered, _ = self._render([Message("user", "x"), Message("assistant", "y")], generation_prompt=False)
        except ModelError:
            return None
        end = self._special.search(rendered, rendered.rindex(_CLOSE))
        token: int | None = self.tokenizer.convert_tokens_to_ids(end.group()) if end is not None else None
        return token

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids, without special tokens, cut at the first stop string, stripped."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        for stop in self.stop_strings:
            text = text.split(stop, 1)[0]
        return text.strip()

    def _render(self, turns: list[Message], *, generation_prompt: bool) -> tuple[str, list[str]]:
        """The template's text with stand-ins, and the texts that they stand for."""
        if self.system and not (turns and turns[0].role == "system"):
            turns = [Message("system", self.system), *turns]
        texts = [turn.text.replace(_OPEN, "").replace(_CLOSE, "").strip() for turn in turns]
        messages = [{"role": turn.role, "content": f"{_OPEN}{number}{_CLOSE}"} for number, turn in enumerate(turns)]
        if self._template is None:
            return self._render_plain(messages, generation_prompt), texts
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except Exception as error:  # Templates raise what they like.
            raise ModelError(
                f"the chat template refuses these turns ({' '.join(turn.role for turn in turns)}): {error}"
            ) from error
        found = [int(number) for number in _STAND_IN.findall(rendered)]
        if found != list(range(len(turns))):
            raise ModelError(
                "the chat template drops or repeats turns "
                f"(got {found}, expected {list(range(len(turns)))}): name another one with chat.template=…"
            )
        return rendered, texts

    def _render_plain(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        names = {"user": f"{self.user} ", "assistant": f"{self.assistant} ", "system": ""}
        end = self.tokenizer.eos_token or ""
        lines = []
        for position, message in enumerate(messages):
            last = position == len(messages) - 1
            closing = end if message["role"] == "assistant" and last else ""
            lines.append(names[message["role"]] + message["content"] + closing)
        if generation_prompt:
            lines.append(self.assistant)
        begin = self.tokenizer.bos_token if getattr(self.tokenizer, "add_bos_token", False) else ""
        return (begin or "") + "\n".join(lines)

    def _up_to_end_of_turn(self, tail: str) -> str:
        """The answer's stand-in, up to the first special token after it: the model need not learn what follows."""
        if self._special is not None and (end := self._special.search(tail)) is not None:
            return tail[: end.end()]
        return tail + (self.tokenizer.eos_token or "")

    def _encode(self, rendered: str, texts: Sequence[str]) -> list[int]:
        ids: list[int] = []
        position = 0
        # Template text is cut at its control tokens first: the texts are still stand-ins and can't be cut.
        for control in self._control.finditer(rendered) if self._control else ():
            ids += self._filled(rendered[position : control.start()], texts)
            ids.append(self.tokenizer.convert_tokens_to_ids(control.group()))
            position = control.end()
        return ids + self._filled(rendered[position:], texts)

    def _filled(self, stretch: str, texts: Sequence[str]) -> list[int]:
        return self._plain(_STAND_IN.sub(lambda match: texts[int(match.group(1))], stretch))

    def _plain(self, text: str) -> list[int]:
        """Ids of a text, none of them a control token's."""
        if not text:
            return []
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
        if self._control is None or len(text) < 2 or self._control_ids.isdisjoint(ids):
            return ids
        # Tokenizers split tokens that are flagged special, and no others, so the text is cut inside each control token.
        # If none is found as it is written (the tokenizer changes letters first), the text is halved again and again.
        cuts = [match.start() + 1 for match in self._control.finditer(text)] or [len(text) // 2]
        return [id_ for start, end in pairwise([0, *cuts, len(text)]) for id_ in self._plain(text[start:end])]


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def shorter_histories(turns: Sequence[Message]) -> Iterator[list[Message]]:
    """``turns`` whole, then without their oldest exchange, then without the two oldest, …, then the last turn alone.

    This is the one rule for a conversation that is too long, in training and in measuring. A system turn in front
    always stays. A history begins with the user's turn, so an exchange goes as a whole.
    """
    rules = [turn for turn in turns[:1] if turn.role == "system"]
    kept = [*turns[len(rules) :]]
    yield [*rules, *kept]
    while len(kept) > 1:
        kept = kept[2:] if len(kept) > 2 else kept[1:]
        yield [*rules, *kept]


def truncate_history(chat: ChatFormat, turns: Sequence[Message], max_tokens: int) -> tuple[list[int], int]:
    """Prompt ids of at most ``max_tokens``: oldest antecedents go first, then the left end of the ids.

    Returns the ids and how many tokens were cut.
    """
    whole: int | None = None
    for history in shorter_histories(turns):
        ids = chat.encode_prompt(history)
        whole = len(ids) if whole is None else whole
        if len(ids) <= max_tokens:
            break
    else:
        ids = ids[-max_tokens:]
    assert whole is not None
    return ids, whole - len(ids)


def truncate_text(chat: ChatFormat, turns: Sequence[Message], opening: str, max_tokens: int) -> tuple[list[int], int]:
    """As ``truncate_history``, but what would lose its left end loses the beginning of the last turn's text instead:
    what stands in front of that stays, and ``opening``, with which that text begins.

    Raises ModelError if there is no room for a token of that text beside these.
    """
    ids, cut = truncate_history(chat, turns, max_tokens)
    if not cut:
        return ids, cut
    *_, shortest = shorter_histories(turns)
    whole = chat.encode_prompt(shortest)
    if len(whole) <= max_tokens:
        return ids, cut
    # Another text of one letter after the same opening: some templates would strip the blank at an opening's end.
    letter = "b" if shortest[-1].text.removeprefix(opening).startswith("a") else "a"
    bare = chat.encode_prompt([*shortest[:-1], Message(shortest[-1].role, opening + letter)])
    if len(bare) > max_tokens:
        raise ModelError(
            f"a system prompt or description, the template and a word take {len(bare)} tokens, and there is room for "
            f"{max_tokens}: shorten it or --max-new-tokens"
        )
    kept = next(number for number, (one, other) in enumerate(zip(whole, bare, strict=False)) if one != other)
    return [*whole[:kept], *whole[len(whole) - (max_tokens - kept) :]], cut
