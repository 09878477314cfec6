"""Filling masks: the tokens and probabilities of transformers' pipeline, for BERT and for RoBERTa."""

import json
import shutil

import pytest
import tiny
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
    pipeline,
)
from transformers.utils import logging

import pellucid
from pellucid import api
from pellucid.core.errors import ConfigError, ModelError
from pellucid.network.families import FAMILIES
from pellucid.network.weights import save_network
from pellucid.text.tokenizer import Tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "ran", "##s", "##ing", "a", "and", ".", "london", "is", "in", "big"]
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


def peaked(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.4, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT and its word pieces as transformers saves them."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    theirs = peaked(BertForMaskedLM(BertConfig(vocab_size=len(WORDS) + 5, max_position_embeddings=24, **SMALL)))
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return pellucid.load(folder), pipeline("fill-mask", model=theirs, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A RoBERTa with GPT-2's kind of bytes, whose mask is called <mask>."""
    folder = tmp_path_factory.mktemp("roberta")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    Tokenizer.train_bpe(tiny.DOCUMENTS, 400).save(folder)
    trained = json.loads((folder / "tokenizer.json").read_text())["model"]
    plain = [token for token in trained["vocab"] if not token.startswith("<|")]
    vocabulary = {token: id for id, token in enumerate([*special, *plain, "<mask>"])}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split()) for merge in trained["merges"]]
    for path in folder.iterdir():
        path.unlink()
    tokenizer = RobertaTokenizerFast(vocab=vocabulary, merges=merges)
    config = RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=40, type_vocab_size=1, pad_token_id=1, **SMALL)
    theirs = peaked(RobertaForMaskedLM(config))
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return pellucid.load(folder), pipeline("fill-mask", model=theirs, tokenizer=tokenizer)


def assert_same(mine, theirs):
    """One mask's fillings."""
    assert [filling.id for filling in mine] == [each["token"] for each in theirs]
    assert [filling.probability for filling in mine] == pytest.approx([each["score"] for each in theirs], rel=1e-3)
    assert [filling.token for filling in mine] == [each["token_str"].strip() for each in theirs]


@pytest.mark.parametrize("text", ["The cat [MASK] on the mat.", "[MASK]", "london is [MASK]", "[MASK] dogs ran and sat ."])
@pytest.mark.parametrize("top", [1, 5])
def test_a_mask_of_bert(bert, text, top):
    model, theirs = bert
    [mine] = model.fill(text, top=top)
    assert_same(mine, theirs(text, top_k=top))


@pytest.mark.parametrize("name", ["<mask>", "[MASK]"])
def test_a_mask_of_roberta_by_either_name(roberta, name):
    model, theirs = roberta
    for text in ("Alice was {} tired", "the White Rabbit{}", "{} she"):
        [mine] = model.fill(text.format(name), top=7)
        assert_same(mine, theirs(text.format("<mask>"), top_k=7))


@pytest.mark.parametrize("text", ["The [MASK] sat on the [MASK] .", "[MASK] [MASK] [MASK]", "a [MASK][MASK] cat"])
def test_several_masks_are_filled_each_by_itself(bert, text):
    model, theirs = bert
    found = model.fill(text, top=4)
    assert len(found) == text.count("[MASK]")
    for mine, expected in zip(found, theirs(text, top_k=4), strict=True):
        assert_same(mine, expected)


def test_all_probabilities_together_are_one(bert):
    [mine] = bert[0].fill("the [MASK]", top=bert[0].config.vocab_size)
    assert sum(filling.probability for filling in mine) == pytest.approx(1.0, abs=1e-5)
    assert len({filling.id for filling in mine}) == bert[0].config.vocab_size
    assert sorted((filling.probability for filling in mine), reverse=True) == [filling.probability for filling in mine]


def message(error, model, text, **options):
    with pytest.raises(error) as caught:
        model.fill(text, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", ["the cat sat", "", "the [mask]", "<mask>"])
def test_no_mask(bert, text):
    expected = f"there is no [MASK] in {text!r}; write [MASK] where a word is missing"
    assert message(ConfigError, bert[0], text) == expected


def test_no_mask_of_roberta(roberta):
    text = message(ConfigError, roberta[0], "Alice")
    assert text == "there is no <mask> in 'Alice'; write [MASK] where a word is missing"


def test_too_long(bert):
    assert (
        message(ConfigError, bert[0], "cat " * 22 + "[MASK]")
        == "the text has 25 tokens, but the model's context is 24; shorten it"
    )
    assert len(bert[0].fill("cat " * 21 + "[MASK]")) == 1


@pytest.mark.parametrize("top", [0, -1, 22, 10**9])
def test_a_top_that_is_none(bert, top):
    assert message(ConfigError, bert[0], "[MASK]", top=top) == f"top must be from 1 to 21, not {top}"


def test_a_decoder_fills_no_masks():
    tokenizer = Tokenizer.train_chars(tiny.DOCUMENTS, extra=("[MASK]",))
    model = api.Model(tiny.randomised(tiny.config(tokenizer.vocab_size)), tokenizer)
    expected = (
        "this qwen3 model fills no masks, since it has no masked-language-model head; use generate, or a model such as BERT"
    )
    assert message(ModelError, model, "A [MASK]") == expected


def test_an_encoder_without_its_head_fills_none(bert, tmp_path):
    from transformers import BertModel

    shutil.copytree(bert[0].path, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    BertModel.from_pretrained(bert[0].path).save_pretrained(tmp_path / "model")
    expected = "this bert model fills no masks, since it has no masked-language-model head; use embed, or a model such as BERT"
    assert message(ModelError, pellucid.load(tmp_path / "model"), "a [MASK]") == expected


def test_a_tokenizer_without_a_mask(bert, tmp_path):
    tokenizer = Tokenizer.train_chars(tiny.DOCUMENTS)
    shape = {"d_model": 16, "layers": 1, "heads": 2, "kv_heads": 2, "d_head": 8, "d_mlp": 20}
    network = tiny.randomised(FAMILIES["bert"].new(vocab_size=tokenizer.vocab_size, context_length=16, **shape))
    save_network(network, tmp_path)
    tokenizer.save(tmp_path)
    expected = (
        "this bert model's tokenizer has no mask token, so there is nothing to fill; put the model's own tokenizer beside it"
    )
    assert message(ModelError, pellucid.load(tmp_path), "a [MASK]") == expected
