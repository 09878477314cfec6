"""Conversations as tokens, and which of them the assistant says: what a chat template writes, as transformers has it.

What people write is data. Where a message contains the name of a special token, transformers makes it that token, so that a
user can end their own turn and speak as the assistant; here it stays the characters that it is. Everywhere else the tokens are
those of `transformers`' `apply_chat_template`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pellucid.core.errors import CorpusError, TokenizerError
from pellucid.text.batches import Flags, Ids
from pellucid.text.byte_pairs import add_tokens
from pellucid.text.folders import token_name
from pellucid.text.templates import Template
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.vocabulary import SPECIAL

Message = Mapping[str, str]
Span = tuple[int, int]
Marked = tuple[int | None, int] | None

CHAT_TOKENS = SPECIAL[1:]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
STAND_INS = range(0xF0000, 0xFFFFE)  # characters of no meaning, which nobody writes (a private use area)
PLACE = "the conversation"


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the special tokens [name -> text] that it may write."""

    source: str = CHATML
    tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The template that a tokenizer came with (of several the one named `default`), else ChatML.

        Raises `TokenizerError` for one that is not Jinja, and for several without a default.
        """
        names = {key: name for key in NAMED_TOKENS if (name := token_name(tokenizer.config, key)) is not None}
        template = cls(_source(tokenizer) or CHATML, names)
        template.compiled  # noqa: B018 - a template that is not Jinja is met here, not in the middle of the work
        return template

    @cached_property
    def compiled(self) -> Template:
        return Template(self.source)

    @property
    def marks_generation(self) -> bool:
        """Whether the template itself says what is the assistant's, with `{% generation %}`."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        marks: tuple[str, str] | None = None,
        place: str = PLACE,
    ) -> str:
        """The text of a conversation; with `marks`, those are put around each `{% generation %}` block.

        Raises `TokenizerError` with the place for a template that raises, loops, grows or reads what it should not.
        """
        variables = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self.tokens,
        }
        return self.compiled.render(variables, marks=marks, place=place)


def with_chat_tokens(tokenizer: Tokenizer) -> tuple[Tokenizer, int]:
    """The tokenizer with a chat template, and by how many ids its vocabulary has grown.

    One with a template of its own is returned as it is. Others get ChatML, which goes into the folder that they are saved to,
    and `<|im_start|>` and `<|im_end|>` as special tokens, unless they have them: those trained here do.
    """
    if _source(tokenizer) is not None:
        return tokenizer, 0
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    add_tokens(backend, CHAT_TOKENS)
    taught = Tokenizer(backend, {**tokenizer.config, "chat_template": CHATML})
    return taught, taught.vocab_size - tokenizer.vocab_size


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    place: str = PLACE,
) -> list[int]:
    """The tokens of a conversation; with `add_generation_prompt`, up to where the assistant is to go on.

    They are those of transformers' `apply_chat_template`, except where a message contains the name of a special token: there it
    becomes that token, here it is text like any other.
    """
    if not messages:
        raise CorpusError(f"{place} has no messages; give some")
    guarded = _Guarded.of(tokenizer, template, messages)
    text = template.render(guarded.messages, add_generation_prompt=add_generation_prompt, place=place)
    return guarded.encode(tokenizer, text).ids


def encode_conversation(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], *, place: str = PLACE
) -> tuple[Ids, Flags]:
    """The tokens [seq] of a conversation, and which of them are to be learned: what the assistant says, and what ends its turn.

    The ids are those of `encode_chat`; a token that reaches from the template's words into the assistant's is learned. If the
    template ends the assistant's turns with no special token, the tokenizer's end of text is added at the end of the
    conversation, and learned. Raises `CorpusError` if the assistant says nothing in it, and `TokenizerError` if what it says
    cannot be told from the rest or `ChatTemplate.render` fails.
    """
    if not any(message["role"] == "assistant" for message in messages):
        raise CorpusError(f"{place} has no turn of the assistant, so there is nothing to learn; add one, or leave it out")
    guarded = _Guarded.of(tokenizer, template, messages)
    text, turns = _said(template, guarded, place)
    encoded = guarded.encode(tokenizer, text)
    ends = encoded.ends_of_special(tokenizer)
    turns = [_without_ending(turn, text, ends) for turn in turns]
    learn = np.zeros(len(encoded.ids), dtype=np.bool_)
    last = _first_between(ends.values(), turns[-1].content, len(text))
    closing = text[turns[-1].content : last] if last else ""
    for turn in turns:
        end = _first_between(ends.values(), turn.content, turn.end)
        if end is None:
            after = text.startswith(closing, turn.content)
            end = (turn.content + len(closing) if after else turn.content) if closing else turn.end
        learn |= encoded.inside((turn.start, end))
    if closing:
        return np.array(encoded.ids, dtype=np.int64), learn
    if tokenizer.end_of_text is None:
        raise TokenizerError(
            f"{place}: the chat template ends the assistant's turns with no special token, and the tokenizer has none; "
            "use a tokenizer that has one"
        )
    return np.array([*encoded.ids, tokenizer.end_of_text], dtype=np.int64), np.append(learn, True)


def turn_end(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, bool]:
    """The token that ends the assistant's turns, and whether it is the end of text that the template lacks and we add."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    ids, learn = encode_conversation(tokenizer, template, messages, place="a first conversation")
    written = encode_chat(tokenizer, template, messages, place="a first conversation")
    return int(ids[learn][-1]), len(ids) > len(written)


@dataclass(frozen=True)
class _Turn:
    """Where, in the characters of a rendering, a turn of the assistant starts, its content ends, and all of it ends."""

    start: int
    content: int
    end: int


def _said(template: ChatTemplate, guarded: _Guarded, place: str) -> tuple[str, list[_Turn]]:
    """A rendering of a conversation and the assistant's turns in it."""
    if template.marks_generation:
        marked = template.render(guarded.messages, marks=guarded.marks, place=place)
        text, blocks = _unmark(marked, guarded.marks)
        turns = [_Turn(start, end, end) for start, end in blocks if start is not None and start < end]
        if not turns:
            raise TokenizerError(
                f"{place}: the chat template has a generation block, but wrote nothing in it; correct the template"
            )
        return text, turns
    text = template.render(guarded.messages, place=place)
    contents = _contents(template, guarded, text, place)
    numbers = [at for at, message in enumerate(guarded.messages) if message["role"] == "assistant"]
    return text, [
        _turn(template, guarded.messages, at, text, content, place) for at, content in zip(numbers, contents, strict=True)
    ]


def _turn(template: ChatTemplate, messages: Sequence[Message], at: int, text: str, content: Marked, place: str) -> _Turn:
    """The turn of message number `at`: from where generation would begin to where the conversation so far ends.

    That does not tell it if a template writes no prompt for the assistant, or writes earlier turns otherwise once there are
    later ones; then the content, found by marks around it, does.
    """
    before = template.render(messages[:at], place=place)
    prompt = template.render(messages[:at], add_generation_prompt=True, place=place)
    so_far = template.render(messages[: at + 1], place=place)
    first, last = content or (None, None)
    start = len(prompt) if prompt != before and text.startswith(prompt) else first
    if first is not None and start is not None:
        nothing_between = prompt == before and text.startswith(before) and not text[len(before) : first].strip()
        start = len(before) if nothing_between else min(start, first)
    end = len(so_far) if text.startswith(so_far) else last
    if start is None or end is None or start >= end:
        raise TokenizerError(
            f"{place}: what the assistant says in message {at + 1} cannot be told from the rest of the rendering; put it "
            "between {% generation %} and {% endgeneration %} in the template"
        )
    return _Turn(start, len(text[:end].rstrip()) if last is None else last, end if last is None else max(end, last))


def _contents(template: ChatTemplate, guarded: _Guarded, text: str, place: str) -> list[Marked]:
    """Where the contents of each of the assistant's turns are in a rendering, found by marks around them.

    None where those change what is written; a start is None where the template leaves out the beginning of the content.
    """
    messages = [
        {**message, "content": _marked(message["content"], guarded.marks)} if message["role"] == "assistant" else message
        for message in guarded.messages
    ]
    unmarked, spans = _unmark(template.render(messages, place=place), guarded.marks)
    count = sum(message["role"] == "assistant" for message in messages)
    return list(spans) if unmarked == text and len(spans) == count else [None] * count


def _marked(content: str, marks: tuple[str, str]) -> str:
    """Marks inside of outer white space, which templates cut away."""
    core = content.strip()
    start = content.index(core)
    return f"{content[:start]}{marks[0]}{core}{marks[1]}{content[start + len(core) :]}"


def _unmark(text: str, marks: tuple[str, str]) -> tuple[str, list[tuple[int | None, int]]]:
    """A text without its marks, and what was between each two of them; None where only the second is left."""
    pieces = re.split("([" + "".join(marks) + "])", text)
    length, opened = 0, list[int]()
    spans: list[tuple[int | None, int]] = []
    for piece in pieces:
        if piece == marks[0]:
            opened.append(length)
        elif piece == marks[1]:
            spans.append((opened.pop() if opened else None, length))
        else:
            length += len(piece)
    return "".join(piece for piece in pieces if piece not in marks), spans


def _without_ending(turn: _Turn, text: str, ends: Mapping[int, int]) -> _Turn:
    """A turn whose content, if it holds the special tokens that end it, goes up to the first of these."""
    content = turn.content
    starts = {end: start for start, end in ends.items()}
    while (stripped := turn.start + len(text[turn.start : content].rstrip())) in starts and starts[stripped] > turn.start:
        content = starts[stripped]
    return replace(turn, content=content)


def _first_between(ends: Iterable[int], after: int, until: int) -> int | None:
    return next((end for end in ends if after < end <= until), None)


@dataclass(frozen=True)
class _Encoded:
    """Tokens, and the characters [start, end) of the text that each came from."""

    ids: list[int]
    places: list[Span]

    def inside(self, span: Span) -> Flags:
        """The tokens that have a character in a span."""
        return np.array([start < span[1] and end > span[0] for start, end in self.places], dtype=np.bool_)

    def ends_of_special(self, tokenizer: Tokenizer) -> dict[int, int]:
        """Where special tokens start and end."""
        special = tokenizer.special_ids | {tokenizer.end_of_text}
        return {start: end for id, (start, end) in zip(self.ids, self.places, strict=True) if id in special}


@dataclass(frozen=True)
class _Guarded:
    """Messages in which a character of every name of a special token is replaced, so that it is no name."""

    messages: list[dict[str, str]]
    replaced: dict[int, str]
    marks: tuple[str, str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> _Guarded:
        written = set(template.source).union(*(message["content"] for message in messages))
        unused = (chr(code) for code in STAND_INS if chr(code) not in written)
        marks = next(unused), next(unused)
        stand_ins: dict[str, str] = {}

        def guard(content: str) -> str:
            while spans := _special(tokenizer, content):
                replaced = list(content)
                for at in (at for span in spans if (at := _first_visible(content, span, stand_ins)) is not None):
                    if content[at] not in stand_ins:
                        stand_ins[content[at]] = next(unused)
                    replaced[at] = stand_ins[content[at]]
                if "".join(replaced) == content:
                    break
                content = "".join(replaced)
            return content

        guarded = [{**message, "content": guard(message["content"])} for message in messages]
        return cls(guarded, {ord(stand_in): character for character, stand_in in stand_ins.items()}, marks)

    def encode(self, tokenizer: Tokenizer, text: str) -> _Encoded:
        """A rendering of these messages as tokens, with what was replaced in its place again."""
        if not self.replaced:
            return _Encoded(*tokenizer.encode_places(text, special=True))
        ids: list[int] = []
        places: list[Span] = []
        at = 0
        for start, end in [*_special(tokenizer, text), (len(text), len(text))]:
            for piece, from_, special in ((text[at:start].translate(self.replaced), at, False), (text[start:end], start, True)):
                part, spans = tokenizer.encode_places(piece, special=special)
                ids += part
                places += [(from_ + first, from_ + last) for first, last in spans]
            at = end
        return _Encoded(ids, places)


def _special(tokenizer: Tokenizer, text: str) -> list[Span]:
    """Where the tokenizer finds the names of special tokens in a text."""
    if tokenizer.kind == "chars":
        names = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special]
        return [match.span() for match in re.finditer("|".join(map(re.escape, names)), text)] if names else []
    ids, places = tokenizer.encode_places(text, special=True)
    unknown = token_name(tokenizer.config, "unk_token")
    none = tokenizer.backend.token_to_id(unknown) if unknown is not None else None
    special = tokenizer.special_ids
    return [
        (start, end)
        for id, (start, end) in zip(ids, places, strict=True)
        if id in special and (id != none or text[start:end].strip() == unknown)
    ]


def _first_visible(text: str, span: Span, stand_ins: Mapping[str, str]) -> int | None:
    taken = set(stand_ins.values())
    return next((at for at in range(*span) if not text[at].isspace() and text[at] not in taken), None)


def _source(tokenizer: Tokenizer) -> str | None:
    """The template that a tokenizer came with: one, or several with names."""
    value = tokenizer.config.get("chat_template")
    if value is None or isinstance(value, str):
        return value
    named = value if isinstance(value, dict) else {}
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if not isinstance(template := named.get("default"), str):
        names = ", ".join(repr(name) for name in named) or "none"
        raise TokenizerError(f"the tokenizer has several chat templates ({names:.200}) and none named 'default'; name one so")
    return template
