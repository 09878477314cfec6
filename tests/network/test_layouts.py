"""Files as they are on the hub: older names, buffers, repeated tensors, shards, other types; and the memory to load them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import randomised
from transformers.utils import logging

from pellucid.network.families import FAMILIES
from pellucid.network.masks import Mask
from pellucid.network.weights import load_network, save_network

logging.set_verbosity_error()
logging.disable_progress_bar()

BERT = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
GPT2 = {"vocab_size": 40, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16}
T5 = {
    "vocab_size": 40,
    "d_model": 12,
    "d_kv": 4,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 3,
    "feed_forward_proj": "gated-gelu",
}
LLAMA = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}


def made(name, **fields):
    """A model of transformers with random weights."""
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(float(weight.ndim == 1), 0.2, generator=generator)
    return model.eval()


def rewritten(model, folder, change, **config):
    """The model's folder with its tensors under other names."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | config))
    return load_network(folder)


def some_ids(seq=9):
    return torch.randint(4, 40, (2, seq), generator=torch.Generator().manual_seed(1))


def test_gpt2_as_it_is_on_the_hub(tmp_path):
    """Without the prefix, and with each block's triangle of ones."""

    def change(tensors):
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        triangle, low = torch.ones(16, 16).tril()[None, None], torch.tensor(-1e4)
        return bare | {
            f"h.{i}.attn.{name}": value for i in (0, 1) for name, value in (("bias", triangle), ("masked_bias", low))
        }

    model = made("GPT2LMHeadModel", **GPT2)
    network = rewritten(model, tmp_path, change)
    assert (network(some_ids()).logits - model(some_ids()).logits).abs().max() < 1e-4


def test_bert_as_it_is_on_the_hub(tmp_path):
    """Norms with gamma and beta, pooler and both heads, position numbers, and the embedding once more as the decoder."""

    def change(tensors):
        tensors = dict(tensors)
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["bert.embeddings.position_ids"] = torch.arange(512)[None]
        older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in older.items():
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        return tensors

    model, ids, types = made("BertForPreTraining", **BERT), some_ids(), some_ids() % 2
    network = rewritten(model, tmp_path, change)
    present = torch.arange(9) < torch.tensor([[9], [5]])
    theirs = model(ids, attention_mask=present.long(), token_type_ids=types)
    pooled = model.bert(ids, attention_mask=present.long(), token_type_ids=types).pooler_output
    mine = network(ids, Mask.for_bidirectional(present), types=types)
    assert (mine.logits - theirs.prediction_logits)[present].abs().max() < 1e-4
    assert (mine.pooled - pooled).abs().max() < 1e-4


def test_an_untied_bert_whose_only_bias_is_the_older_one(tmp_path):
    """transformers before 5 wrote cls.predictions.bias alone, for the decoder's bias was the same tensor."""

    def change(tensors):
        tensors = dict(tensors)
        tensors["cls.predictions.bias"] = tensors.pop("cls.predictions.decoder.bias")
        return tensors

    model = made("BertForMaskedLM", **BERT, tie_word_embeddings=False)
    network = rewritten(model, tmp_path, change)
    assert (network(some_ids()).logits - model(some_ids()).logits).abs().max() < 1e-4


def test_t5_with_its_embedding_three_times(tmp_path):
    def change(tensors):
        shared = tensors["shared.weight"]
        unused = torch.ones(32, 3)  # of the first files
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        return tensors | {"encoder.embed_tokens.weight": shared, "decoder.embed_tokens.weight": shared, name: unused}

    model = made("T5ForConditionalGeneration", **T5)
    network = rewritten(model, tmp_path, change)
    mine, theirs = network(some_ids(), decoder_ids=some_ids(5)), model(some_ids(), decoder_input_ids=some_ids(5))
    assert (mine.logits - theirs.logits).abs().max() < 1e-4


def test_t5_1_1_has_a_head_of_its_own_and_scales_nothing(tmp_path):
    """As google/t5-v1_1-* is published. The judge is the formula: lm_head times the decoder's last hidden state."""
    head = torch.randn(40, 12, generator=torch.Generator().manual_seed(2))
    model = made("T5ForConditionalGeneration", **T5)
    network = rewritten(
        model,
        tmp_path,
        lambda tensors: tensors | {"lm_head.weight": head},
        tie_word_embeddings=False,
        scale_decoder_outputs=None,
    )
    assert not network.config.tied
    assert network.config.head_scale == 1.0
    hidden = model(some_ids(), decoder_input_ids=some_ids(5), output_hidden_states=True).decoder_hidden_states[-1]
    assert (network(some_ids(), decoder_ids=some_ids(5)).logits - hidden @ head.T).abs().max() < 1e-4
    save_network(network, tmp_path)
    assert load_network(tmp_path).config == network.config
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(theirs.lm_head.weight, head)  # which transformers 5 does not tie, whatever its configuration says
    logits = theirs(some_ids(), decoder_input_ids=some_ids(5)).logits
    assert (network(some_ids(), decoder_ids=some_ids(5)).logits - logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("LlamaForCausalLM", LLAMA | {"num_key_value_heads": 1}),
        ("BertForMaskedLM", BERT | {"max_position_embeddings": 600}),
        ("T5ForConditionalGeneration", T5),
    ],
)
def test_a_long_text_goes_through_the_fused_kernel_and_is_the_same(name, fields, tmp_path):
    model, ids = made(name, **fields), some_ids(600)
    model.save_pretrained(tmp_path)
    network, present = load_network(tmp_path), torch.arange(600) < torch.tensor([[600], [520]])
    later = {"decoder_input_ids": ids[:, :550]} if network.config.family == "t5" else {}
    theirs = model(ids, attention_mask=present.long(), **later).logits
    mask = None if network.config.causal and not later else Mask.for_bidirectional(present)
    mine = network(ids, mask, **({"decoder_ids": ids[:, :550]} if later else {})).logits
    there = torch.ones(2, 550, dtype=torch.bool) if later else present
    assert (mine - theirs)[there].abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "fields"), [("LlamaForCausalLM", LLAMA), ("GPT2LMHeadModel", GPT2), ("T5ForConditionalGeneration", T5)]
)
def test_shards_written_by_transformers(name, fields, tmp_path):
    model = made(name, **fields)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="3kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = load_network(tmp_path / "whole"), load_network(tmp_path / "shards")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), shards.parameters(), strict=True))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_keep_their_type_unless_another_is_asked_for(name, stored, tmp_path):
    heads = {"heads": 3, "kv_heads": 3, "d_head": 4, "d_mlp": 20}
    network = randomised(FAMILIES[name].new(vocab_size=40, context_length=16, d_model=12, layers=2, **heads)).to(stored)
    save_network(network, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    loaded = load_network(tmp_path)
    for mine, weight in zip(network.parameters(), loaded.parameters(), strict=True):
        assert weight.dtype == stored
        assert weight.is_contiguous()
        assert torch.equal(mine, weight)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for mine, weight in zip(network.parameters(), load_network(tmp_path, dtype=dtype).parameters(), strict=True):
            assert weight.dtype == dtype
            assert torch.equal(mine.to(dtype), weight)


PEAK = """
import sys, torch
from pathlib import Path
from pellucid.network.weights import load_network
import pellucid.network.weights
torch.set_num_threads(1)

def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

torch.ones(10).aminmax()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins now
before = memory("VmRSS")
network = load_network(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]) if sys.argv[2] else None)
peak = memory("VmHWM") - before
print(peak, sum(weight.numel() * weight.element_size() for weight in network.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "shards", "dtype"),
    [("llama", False, ""), ("llama", True, ""), ("gpt2", False, ""), ("gpt2", True, ""), ("llama", False, "float32")],
)
def test_loading_takes_little_more_memory_than_the_weights(family, shards, dtype, tmp_path):
    """About 300 MB of bfloat16; the peak of a process that does nothing else."""
    heads = {"heads": 16, "kv_heads": 16, "d_head": 64, "d_mlp": 4096 if family == "gpt2" else 2816}
    config = FAMILIES[family].new(vocab_size=16_000, context_length=256, d_model=1024, layers=11, **heads)
    save_network(randomised(config).to(torch.bfloat16), tmp_path)
    if shards:
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="60MB")
        tmp_path = tmp_path / "shards"
    out = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path), dtype], capture_output=True, text=True, check=True).stdout
    peak, weights = map(int, out.split())
    print(f"{family}: {weights / 1e6:.0f} MB of weights, peak {peak / weights:.3f} times as much")
    assert weights > 250_000_000
    assert peak < 1.15 * weights
    assert Path(tmp_path, "model.safetensors").exists() != shards
