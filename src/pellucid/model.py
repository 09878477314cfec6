"""What users hold: a network with its tokenizer and its folder, and all that it can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.converting import check_free, write_model
from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.progress import Progress, Silent
from pellucid.evaluation.embed import Mode, Pooling, embed
from pellucid.evaluation.fill import Filling, fill
from pellucid.evaluation.likelihood import opening
from pellucid.evaluation.predict import TOKENS, Prediction, known_temperature, predict_texts
from pellucid.generation import generate as writing
from pellucid.generation.constrain import Constraint
from pellucid.generation.rates import Rates, measure
from pellucid.generation.settings import Sampling, SamplingFields
from pellucid.generation.text import Generation
from pellucid.loading import end_ids, special_ids
from pellucid.network.config import ModelConfig
from pellucid.network.masks import Mask
from pellucid.network.network import Network, Output
from pellucid.network.taps import Edit, Site, Taps
from pellucid.text.chat import ChatTemplate, Message, encode_chat
from pellucid.text.encoded import Long
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import words_of


@dataclass(frozen=True)
class Model:
    """A network with its tokenizer."""

    network: Network
    tokenizer: Tokenizer
    path: Path | None = None
    ends: frozenset[int] = frozenset()  # tokens that end a text, besides the tokenizer's end of text

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    def __call__(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        *,
        decoder_ids: Int[Tensor, "batch decoded"] | None = None,
        types: Int[Tensor, "batch seq"] | None = None,
    ) -> Output:
        """Logits [batch seq vocab] and last hidden states [batch seq d_model] of token ids.

        An encoder-decoder needs `decoder_ids`, and answers about those; `types` are the token types of a network that has them.
        """
        for given in (ids, decoder_ids):
            if given is not None and given.numel():
                writing.check_ids(map(int, given.aminmax()), self.config.vocab_size)
        longest = max(ids.shape[1], 0 if decoder_ids is None else decoder_ids.shape[1])
        if longest > self.config.context_length:
            raise ConfigError(f"{longest:,} tokens exceed the model's context of {self.config.context_length:,}; pass fewer")
        if (decoder_ids is not None) != (self.config.architecture == "encoder-decoder"):
            raise ConfigError(
                f"a {self.config.family} model takes {'no ' if decoder_ids is not None else ''}decoder_ids: "
                "they are what the decoder of an encoder-decoder reads"
            )
        if types is not None and not self.config.token_types:
            raise ConfigError(f"this {self.config.family} model has no token types; leave types out")
        options = {"decoder_ids": decoder_ids, "types": types}
        return cast(Output, self.network(ids, mask, taps, **{name: v for name, v in options.items() if v is not None}))

    def compile(self, *, if_it_pays: bool = False, progress: Progress | None = None) -> None:
        """Have the step that writes a token compiled, for a model loaded with a `precision` that will write much.

        That takes a minute, once for each model and precision: what comes of it is kept in the cache folder. A small model then
        writes two to three times as fast. Sums are rounded in another order: a seed may write another text than before.
        Raises `ConfigError` where it cannot be done; with `if_it_pays` that is told to `progress` instead, and models of more
        than 1 GB are left as they are.
        """
        if self.network.held is None:
            raise ConfigError(
                "steps are compiled for a model that only reads; load it with a precision, such as precision='auto'"
            )
        from pellucid.generation.compiled import compile_if_it_pays, compile_steps

        (compile_if_it_pays if if_it_pays else compile_steps)(self.network, (progress or Silent()).say)

    def sites(self) -> list[Site]:
        """Every place where taps can read or edit: name, shape, meaning."""
        return self.network.sites()

    @contextmanager
    def record(self, *sites: str) -> Iterator[Taps]:
        """What passes at some sites, named or by pattern (`blocks.*.attn.pattern`), in the calls that are made meanwhile.

        `with model.record("hidden") as seen: model.score("a text")`; then `seen["hidden"]` is what passed in the last forward
        pass. Of a text that is being written that is a row for its last token, beside rows of filling (see `edit`).
        """
        if not sites:
            raise ConfigError("no site to record was given; name some, such as 'hidden' or 'blocks.*.attn.pattern'")
        taps = Taps(sites)
        with self.network.recording(taps):
            yield taps

    def edit(self, edits: Mapping[str, Edit | Tensor | float]) -> Model:
        """This model with what passes at some sites changed: by a function of it, or into a number or tensor.

        It shares the weights and can do what the model can, but for being compiled, saved or fine-tuned. A function should
        treat each position by itself: while a text is written it sees some tokens at a time, new ones of several texts or the
        next ones of a prompt, filled up to a number that is fast.
        """
        return replace(self, network=self.network.edited(Taps(edit=edits)))

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        top_logprobs: int = 0,
        prompt_logprobs: bool = False,
        schema: dict[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        beams: int = 1,
        length_penalty: float = 1.0,
        **sampling: Unpack[SamplingFields],
    ) -> Any:
        """Continue a text, token ids, or a list of either. One prompt gives one `Generation`, a list gives a list of them.

        `sampling` are the settings of `Sampling`: temperature, top_k, seed ... The same seed writes the same text, alone or in
        a list. With `n` above 1 a prompt gives a list of so many. `top_logprobs` tells the likeliest tokens at each place,
        `prompt_logprobs` how likely the prompt is.
        With a `schema`, a `regex` or `choices` the text is JSON of that schema, matches, or is one of them, unless `max_tokens`
        end it before.
        `beams` above 1 search for the likeliest continuation instead of drawing one: the one of the highest sum of
        log-probabilities, divided by its length to the power of `length_penalty`.
        """
        prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # a tensor or an array of ids
        one = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], int))
        prompts: Any = [prompt] if one else prompt
        done = writing.generate(
            self.network,
            self.tokenizer,
            prompts,
            max_tokens=max_tokens,
            sampling=Sampling.of(sampling),
            stop=stop,
            ends=self.ends,
            n=n,
            top_logprobs=top_logprobs,
            prompt_logprobs=prompt_logprobs,
            constraint=Constraint.of(schema, regex, choices),
            beams=beams,
            length_penalty=length_penalty,
        )
        found: list[Any] = done if n == 1 else [done[at : at + n] for at in range(0, len(done), n)]
        return found[0] if one else found

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        schema: dict[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        beams: int = 1,
        length_penalty: float = 1.0,
        **sampling: Unpack[SamplingFields],
    ) -> Iterator[str]:
        """Continue a text, piece by piece; takes the options of `generate`. With `beams` the text is one piece."""
        options: dict[str, Any] = {"max_tokens": max_tokens, "stop": stop, "beams": beams, "length_penalty": length_penalty}
        options["constraint"] = Constraint.of(schema, regex, choices)
        return writing.stream(self.network, self.tokenizer, prompt, sampling=Sampling.of(sampling), ends=self.ends, **options)

    def chat(self, messages: str | Sequence[Message], **options: Any) -> Generation:
        """What the assistant answers: to one message of a user, or to a conversation of messages with `role` and `content`.

        The model's chat template (ChatML without one) is put around them; takes the options of `generate`.
        """
        talk = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        ids = encode_chat(self.tokenizer, ChatTemplate.of(self.tokenizer), talk, add_generation_prompt=True)
        return cast(Generation, self.generate(ids, **options))

    @torch.inference_mode()
    def score(self, text: str) -> Float[Tensor, " tokens"]:
        """Natural-log probability of every token of `text`, the first one after what documents begin with."""
        if not self.config.generates or self.config.architecture == "encoder-decoder":
            raise ModelError(f"a {self.config.family} model of this kind gives no probability to a text; use a decoder")
        ids = self.tokenizer.encode(text)
        if not ids:
            raise ConfigError("the text to score is empty; give at least one character")
        before = opening(self.tokenizer)
        out = self(torch.tensor([[*before, *ids[:-1]]], device=self.network.device))
        assert out.logits is not None, "what generates has a head"
        logprobs = out.logits[0, len(before) - 1 :].float().log_softmax(dim=-1)
        found: Tensor = logprobs.gather(1, torch.tensor(ids, device=logprobs.device)[:, None])[:, 0]
        return found

    def fill(self, text: str, *, top: int = 5) -> list[list[Filling]]:
        """The `top` likeliest tokens for every `[MASK]` in a text, of a masked language model."""
        return fill(self.network, self.tokenizer, text, top=top)

    def predict(
        self,
        texts: str | Sequence[str],
        *,
        temperature: float | None = None,
        long: Long = "error",
        batch_tokens: int = TOKENS,
    ) -> list[Prediction]:
        """What a classifier or a tagger says of each text, in their order.

        A classifier gives `.label`, `.probability` and `.probabilities` (one that gives several labels `.labels`), a regression
        `.value`, a tagger `.words`, `.tags` and `.spans`. Scores are divided by the `temperature` before they become
        probabilities: without it by the one that fine-tuning left beside the model, if there is one. `long` texts are an error,
        are cut, or are split into parts whose scores are averaged.
        """
        one = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(one):
            if not isinstance(text, str):
                raise ConfigError(f"text {number} is {type(text).__name__}, not a string; give texts")
        asked = known_temperature(self.path) if temperature is None else temperature
        words = [words_of(text) for text in one] if self.config.head == "tag" else one
        options: dict[str, Any] = {"temperature": asked, "long": long, "batch_tokens": batch_tokens}
        return predict_texts(self.network, self.tokenizer, words, **options)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Mode | None = None,
        normalize: bool | None = None,
        truncate: bool = False,
    ) -> Float[Tensor, "texts d_model"]:
        """A vector for each text, [texts d_model]: by default the mean over its tokens, or what sentence-transformers would do.

        A text that is longer than the model takes is an error, unless `truncate` allows to cut its end.
        """
        usual = Pooling.of(self.path) if self.path is not None and self.path.is_dir() else Pooling()
        chosen = Pooling(
            mode=usual.mode if pooling is None else pooling,
            normalize=usual.normalize if normalize is None else normalize,
            longest=usual.longest,
        )
        one = [texts] if isinstance(texts, str) else texts
        return embed(self.network, self.tokenizer, one, chosen, truncate=truncate)

    def rates(self, *, texts: Sequence[int] = (1, 8), prompt: int = 64, tokens: int = 64) -> Rates:
        """How fast it writes so many texts at once on this machine: `pellucid bench`."""
        return measure(self.network, self.tokenizer, texts=texts, prompt=prompt, tokens=tokens)

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write a Hugging Face-shaped model folder."""
        path = Path(folder)
        check_free(path, "hf", force=force)
        ids = special_ids(self.path, self.tokenizer)
        if not self.ends <= end_ids(ids):
            ids["eos_token_id"] = sorted(self.ends)
        write_model(path, self.network, self.tokenizer, ids=ids, source=self.path)
