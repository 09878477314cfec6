"""Every family against transformers: scores, hidden states, gradients and files, in both directions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny import randomised
from transformers.utils import logging

from pellucid.network.config import RopeScaling
from pellucid.network.families import FAMILIES
from pellucid.network.masks import Mask
from pellucid.network.weights import load_network, names_in, save_network, to_file

logging.set_verbosity_error()
logging.disable_progress_bar()

CLASSES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    "llama": ("LlamaForCausalLM", "LlamaModel"),
    "mistral": ("MistralForCausalLM", "MistralModel"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Model"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Model"),
    "bert": ("BertForMaskedLM", "BertModel"),
    "roberta": ("RobertaForMaskedLM", "RobertaModel"),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertModel"),
    "t5": ("T5ForConditionalGeneration",),
}
ENCODERS = ("bert", "roberta", "distilbert")
LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]
SEED = st.integers(0, 2**16)


def proof(examples):
    """The same configurations every time. They are small as they are: a failure is not made smaller, which takes minutes."""
    phases, quiet = [Phase.generate], [HealthCheck.too_slow]
    return settings(max_examples=examples, derandomize=True, database=None, phases=phases, suppress_health_check=quiet)


def assert_below(a, b, tolerance):
    """The largest difference is below the tolerance; there is one to look at."""
    assert a.shape == b.shape
    assert a.numel()
    assert (a - b).abs().max() < tolerance


# ---- configurations as transformers has them


@st.composite
def rope(draw, context):
    kind = draw(st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn"]))
    found = {"rope_type": kind, "rope_theta": draw(st.sampled_from([100.0, 10_000.0, 500_000.0]))}
    if kind == "default":
        return found
    found["factor"] = draw(st.sampled_from([1.0, 2.0, 3.5, 8.0]))
    if kind in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = max(context // 4, 4)
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([1.5, 4.0]))}
    if kind == "yarn":
        ways = [{}, {"attention_factor": 0.8}, {"mscale": 0.7, "mscale_all_dim": 1.0}, {"mscale": 0.7}]
        found |= draw(st.sampled_from(ways))
        found |= draw(st.sampled_from([{}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"truncate": False}]))
    return found


@st.composite
def llama_like(draw, family):
    kv_heads, context = draw(st.integers(1, 3)), draw(st.sampled_from([16, 64, 4096]))
    heads = kv_heads * draw(st.integers(1, 3))
    fields = {
        "max_position_embeddings": context,
        "hidden_size": draw(st.integers(4, 33)),
        "intermediate_size": draw(st.integers(1, 45)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(2, 6)),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": draw(rope(context)),
    }
    if draw(st.booleans()):  # head_dim from the width
        fields |= (
            {"head_dim": None, "hidden_size": heads * 2 * draw(st.integers(2, 5))} if family in ("llama", "mistral") else {}
        )
    if family == "llama":  # of which transformers wants a width that heads can share
        fields["hidden_size"] = -(-fields["hidden_size"] // heads) * heads
        fields |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    if family == "mistral":
        fields["sliding_window"] = draw(st.sampled_from([None, context]))
    if family == "qwen3":
        fields["attention_bias"] = draw(st.booleans())
    return fields


@st.composite
def gpt2_like(draw):
    heads = draw(st.integers(1, 4))
    return {
        "n_positions": draw(st.sampled_from([16, 40])),
        "n_embd": heads * draw(st.integers(4, 9)),
        "n_head": heads,
        "n_layer": draw(st.integers(1, 3)),
        "n_inner": draw(st.one_of(st.none(), st.integers(1, 50))),
        "activation_function": draw(st.sampled_from(ACTIVATIONS)),
        "layer_norm_epsilon": draw(st.sampled_from([1e-6, 1e-5])),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def bert_like(draw, family):
    heads, layers = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    width, inner = heads * draw(st.integers(4, 9)), draw(st.integers(1, 50))
    if family == "distilbert":
        fields = {"dim": width, "n_heads": heads, "n_layers": layers, "hidden_dim": inner}
        fields["activation"] = draw(st.sampled_from(["gelu", "relu"]))  # all that transformers takes
    else:
        fields = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": inner}
        fields |= {"type_vocab_size": draw(st.integers(1, 3)), "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5]))}
        fields["hidden_act"] = "gelu" if family == "roberta" else draw(st.sampled_from(ACTIVATIONS))
    fields["pad_token_id"] = draw(st.integers(0, 3)) if family == "roberta" else 0
    fields["max_position_embeddings"] = draw(st.sampled_from([24, 40]))
    return fields | {"tie_word_embeddings": draw(st.booleans())}


@st.composite
def t5_like(draw):
    return {
        "d_model": draw(st.integers(4, 32)),
        "d_kv": draw(st.integers(1, 9)),
        "d_ff": draw(st.integers(1, 48)),
        "num_layers": draw(st.integers(1, 3)),
        "num_decoder_layers": draw(st.one_of(st.none(), st.integers(1, 3))),
        "num_heads": draw(st.integers(1, 4)),
        "relative_attention_num_buckets": draw(st.sampled_from([8, 12, 32])),
        "relative_attention_max_distance": draw(st.sampled_from([20, 128])),
        "feed_forward_proj": draw(st.sampled_from(["relu", "gated-gelu", "gated-silu"])),
        "tie_word_embeddings": draw(st.booleans()),  # which transformers 5 takes for: the decoder's output is scaled
    }


@st.composite
def models(draw, family):
    """What a model of transformers is made of: its class, the class's options, and its configuration."""
    fields = draw(
        llama_like(family) if family in LLAMAS else {"gpt2": gpt2_like(), "t5": t5_like()}.get(family, bert_like(family))
    )
    fields["vocab_size"] = draw(st.integers(8, 150))
    name = draw(st.sampled_from(CLASSES[family]))
    options = {"add_pooling_layer": draw(st.booleans())} if name in ("BertModel", "RobertaModel") else {}
    return name, options, {"model_type": family} | fields


def made(name, options, fields, seed):
    """The model with random weights, every one of which matters."""
    model = getattr(transformers, name)(transformers.AutoConfig.for_model(**fields), **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.3, generator=generator)
            else:  # more would make chaos of depth: transformers' own rounding errors grow to 1e-4
                weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
    return model.eval()


# ---- texts, and what both make of them


def texts(model, seed, longest=200):
    """Padded ids, which of them are there, and what else the model reads. The first row ends where the context does."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    context = getattr(config, "max_position_embeddings", getattr(config, "n_positions", longest))
    context -= config.pad_token_id + 1 if config.model_type == "roberta" else 0
    seq = min(int(torch.randint(5, 45, (), generator=generator)), context)
    start = context - seq if config.model_type in ("gpt2", *LLAMAS) else 0
    seq = context if config.model_type in ENCODERS else seq
    ids = torch.randint(4, config.vocab_size, (3, seq), generator=generator)  # no padding ids
    present = torch.arange(seq) < torch.tensor([[seq], [max(seq - 3, 1)], [1]])
    types = getattr(config, "type_vocab_size", 0) and torch.randint(0, config.type_vocab_size, ids.shape, generator=generator)
    later = torch.randint(4, config.vocab_size, (3, min(seq // 2 + 1, 30)), generator=generator)
    padding = getattr(config, "pad_token_id", 0) or 0
    return ids.where(present, torch.tensor(padding)), present, types, later, start


def theirs_of(model, seed):
    """Scores (or None), hidden states and the pooled vector of transformers; where there is something."""
    ids, present, types, later, start = texts(model, seed)
    options = {"attention_mask": present.long(), "output_hidden_states": True}
    if model.config.model_type in ("bert", "roberta"):
        options["token_type_ids"] = types
    if model.config.model_type in ("gpt2", *LLAMAS):
        options["position_ids"] = torch.arange(start, start + ids.shape[1])[None]
    if model.config.model_type == "t5":
        out = model(ids, decoder_input_ids=later, **options)
        return out.logits, out.decoder_hidden_states[-1], None, torch.ones_like(later, dtype=torch.bool)
    out = model(ids, **options)
    return getattr(out, "logits", None), out.hidden_states[-1], getattr(out, "pooler_output", None), present


def ours_of(network, model, seed):
    """The same of our network."""
    ids, present, types, later, start = texts(model, seed)
    if network.config.family == "t5":
        out = network(ids, Mask.for_bidirectional(present), decoder_ids=later)
    elif network.config.family in ENCODERS:
        out = network(ids, Mask.for_bidirectional(present), types=types if network.config.token_types else None)
    else:
        mask = Mask(positions=torch.arange(start, start + ids.shape[1])[None], causal=True, present=present)
        out = network(ids, mask)
    return out.logits, out.hidden, out.pooled


def scored(logits, present):
    """The scores that mean something: of whole texts, or of present positions."""
    return logits if logits.ndim == 2 else logits[present]


def agree(network, model, seed):
    """Scores, hidden states and pooled vectors at all present positions."""
    with torch.no_grad():
        logits, hidden, pooled, present = theirs_of(model, seed)
        mine = ours_of(network, model, seed)
    assert_below(mine[1][present], hidden[present], 1e-4)
    if logits is not None:
        assert_below(scored(mine[0], present), scored(logits, present), 1e-4)
    assert (mine[2] is None) == (pooled is None) or network.config.head == "classify"  # where transformers keeps it to itself
    if pooled is not None:
        assert_below(mine[2], pooled, 1e-4)


def loss_of(logits, hidden, pooled, present, seed):
    """The mean cross-entropy over random targets; without a head, a random sum."""
    generator = torch.Generator().manual_seed(seed)
    if logits is not None:
        chosen = scored(logits, present)
        targets = torch.randn(chosen.shape, generator=generator).softmax(dim=-1)  # a number is no class
        return F.cross_entropy(chosen, targets) if chosen.shape[1] > 1 else F.mse_loss(chosen, targets)
    loss = (hidden[present] * torch.randn(hidden[present].shape, generator=generator)).mean()
    return loss if pooled is None else loss + (pooled * torch.randn(pooled.shape, generator=generator)).mean()


def same_gradients(network, model, seed):
    """One backward pass each; every parameter's gradient, in the family's names and forms."""
    logits, hidden, pooled, present = theirs_of(model, seed)
    mine = ours_of(network, model, seed)
    model.zero_grad()
    network.zero_grad()
    loss_of(logits, hidden, pooled, present, seed).backward()
    loss_of(mine[0] if logits is not None else None, *mine[1:], present, seed).backward()
    known = FAMILIES[network.config.family]
    names = names_in(network.config, known)
    gradients = {ours: weight.grad for ours in names if (weight := network.get_parameter(ours)).grad is not None}
    found = to_file(gradients, {ours: replace(names[ours], copy="") for ours in gradients})
    compared, whole = 0, max(weight.grad.norm() for weight in model.parameters() if weight.grad is not None)
    for name, weight in model.named_parameters():
        name = name if name in found or not known.prefix else f"{known.prefix}{name}"
        if weight.grad is None:
            assert name not in found or not found[name].any(), name
            continue
        compared += 1
        scale = max(weight.grad.norm(), 1e-3 * whole)  # keys' biases move no softmax: what they have is rounding
        assert (found.pop(name) - weight.grad).norm() < 1e-3 * scale, name
    assert not found
    assert compared > 3


def opened_by_transformers(folder, name, options):
    """What transformers makes of a folder, with nothing missing and nothing left over."""
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("family", CLASSES)
def test_a_model_of_transformers_is_the_same_model_here(family, tmp_path_factory):
    @proof(30)
    @given(spec=models(family), seed=SEED)
    def check(spec, seed):
        model = made(*spec, seed)
        theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
        model.save_pretrained(theirs)
        network = load_network(theirs)
        assert network.config.family == family
        agree(network, model, seed)
        same_gradients(network, model, seed)
        save_network(network, ours)
        again = load_network(ours)
        assert again.config == network.config
        for (name, weight), (other, loaded) in zip(network.named_parameters(), again.named_parameters(), strict=True):
            assert name == other
            assert torch.equal(weight, loaded), name
        agree(again, opened_by_transformers(ours, *spec[:2]), seed)

    check()


# ---- configurations as we have them


@st.composite
def configs(draw, family):
    fields = {
        "vocab_size": draw(st.integers(8, 150)),
        "context_length": draw(st.sampled_from([16, 33])),
        "layers": draw(st.integers(1, 3)),
        "heads": draw(st.integers(1, 4)),
        "d_mlp": draw(st.integers(1, 50)),
        "tied": draw(st.booleans()),
    }
    fields |= {"kv_heads": fields["heads"], "d_head": draw(st.integers(4, 7)), "d_model": draw(st.integers(4, 40))}
    if family in LLAMAS:
        fields |= {"heads": fields["kv_heads"] * draw(st.integers(1, 2)), "d_head": 2 * fields["d_head"]}
        scalings = [
            None,
            RopeScaling(kind="linear", factor=3.0),
            RopeScaling(kind="llama3", factor=8.0, original_context=8),
            RopeScaling(kind="yarn", factor=4.0, original_context=8, high=32.0, attention_factor=0.9, truncate=False),
        ]
        fields["d_model"] = -(-fields["d_model"] // fields["heads"]) * fields["heads"]
        fields |= {"rope_theta": 500.0, "rope_scaling": draw(st.sampled_from(scalings))}
    elif family == "t5":
        fields |= {"decoder_layers": draw(st.integers(1, 3))} | draw(
            st.sampled_from(
                [
                    {"gated": True, "activation": "gelu_tanh"},
                    {"gated": False, "activation": "relu"},
                    {"gated": True, "activation": "silu"},
                ]
            )
        )
        fields["head_scale"] = fields["d_model"] ** -0.5 if fields["tied"] else 1.0
    else:
        fields["d_model"] = fields["heads"] * fields["d_head"]
        fields["activation"] = (
            draw(st.sampled_from(["gelu", "gelu_tanh", "relu", "silu"])) if family in ("bert", "gpt2") else "gelu"
        )
    if family in ENCODERS:
        fields |= draw(st.sampled_from([{"head": "mlm"}, {"head": "none", "pooler": family != "distilbert"}, {"head": "none"}]))
    if family in ("bert", "roberta"):
        fields |= {"token_types": draw(st.integers(1, 3)), "norm_eps": draw(st.sampled_from([1e-12, 1e-5]))}
    return FAMILIES[family].new(**fields)


@pytest.mark.parametrize("family", CLASSES)
def test_a_model_of_ours_is_the_same_model_in_transformers(family, tmp_path_factory):
    @proof(12)
    @given(config=configs(family), seed=SEED)
    def check(config, seed):
        folder = tmp_path_factory.mktemp("ours")
        network = randomised(config, seed)
        save_network(network, folder)
        loaded = load_network(folder)
        assert loaded.config == config
        name = CLASSES[family][0 if config.head != "none" else 1]
        options = {"add_pooling_layer": config.pooler} if name in ("BertModel", "RobertaModel") else {}
        model = opened_by_transformers(folder, name, options)
        agree(network, model, seed)
        agree(loaded, model, seed)
        same_gradients(network, model, seed)

    check()
