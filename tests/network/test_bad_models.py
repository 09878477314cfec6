"""Model folders that are damaged, incomplete or hostile: one sentence that says what, where, and the way out."""

import json
import re
import resource
import time

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import randomised

from pellucid.core.errors import ConfigError, ModelError, PellucidError
from pellucid.network.families import FAMILIES
from pellucid.network.weights import load_network, read_config, save_network

SMALL = {"vocab_size": 11, "context_length": 8, "d_model": 8, "layers": 1, "d_mlp": 6, "heads": 2, "kv_heads": 2, "d_head": 4}
MODELS = {
    "gpt2": SMALL,
    "llama": SMALL,
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL,
    "bert": SMALL | {"token_types": 2},
    "roberta": SMALL | {"token_types": 1},
    "distilbert": SMALL,
    "t5": SMALL | {"decoder_layers": 1, "head_scale": 8**-0.5},
    "lstm": {name: SMALL[name] for name in ("vocab_size", "context_length", "d_model", "layers")},
    "bag-of-words": {name: SMALL[name] for name in ("vocab_size", "context_length", "d_model", "layers")},
}

CHANGES = "not supported, and leaving it out would change the model's answers"


@pytest.fixture(autouse=True)
def as_for_users():
    """Without the checks of types that other tests run with: what refuses a value here is our own code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def save(family, folder, **changes):
    folder.mkdir(exist_ok=True)
    save_network(randomised(FAMILIES[family].new(**MODELS[family] | changes)), folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save("llama", tmp_path / "model")


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def set_tensors(folder, **tensors):
    """Put, or with None take away, tensors."""
    path = folder / "model.safetensors"
    found = load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path)


def set_header(folder, change):
    """Rewrite the header of the safetensors file."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def complaint(folder):
    """The one sentence, its folder's name left out."""
    with pytest.raises(PellucidError) as caught:
        load_network(folder)
    return str(caught.value).replace(str(folder), "FOLDER")


class TestConfig:
    def test_there_is_none(self, tmp_path):
        assert complaint(tmp_path) == "FOLDER is not a model folder: it has no config.json"

    def test_no_folder(self, tmp_path):
        assert complaint(tmp_path / "nowhere") == "FOLDER is not a model folder: it has no config.json"

    @pytest.mark.parametrize("text", ["[]", "3", '"llama"', "null"])
    def test_it_is_no_table(self, folder, text):
        (folder / "config.json").write_text(text)
        assert complaint(folder) == ("FOLDER/config.json is not a table of settings; put back the model's own config.json")

    @pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 5000])
    def test_it_is_not_json(self, folder, data):
        (folder / "config.json").write_bytes(data)
        assert re.fullmatch(
            r"FOLDER/config.json is not valid JSON \(.*\); restore it, or delete the folder it is in", complaint(folder)
        )

    @pytest.mark.parametrize("name", ["mamba", None, 3, ["llama"], {}, "LLAMA", ""])
    def test_an_unknown_family(self, folder, name):
        set_config(folder, model_type=name)
        assert complaint(folder) == (
            f"FOLDER/config.json: model_type {name!r} is not supported; the families are bag-of-words, bert, distilbert, gpt2, "
            "llama, lstm, mistral, qwen2, qwen3, roberta, t5"
        )

    def test_fields_that_are_missing_are_all_named(self, folder):
        path = folder / "config.json"
        fields = json.loads(path.read_text())
        del fields["hidden_size"], fields["num_attention_heads"]
        path.write_text(json.dumps(fields))
        assert complaint(folder) == "FOLDER/config.json: hidden_size, num_attention_heads must be given"

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"num_hidden_layers": 10**9}, "num_hidden_layers must be from 1 to 4,096, not 1000000000"),
            ({"vocab_size": 10**12}, "vocab_size must be from 1 to 16,777,216, not 1000000000000"),
            ({"hidden_size": 10**9}, "hidden_size must be from 1 to 16,777,216, not 1000000000"),
            (
                {"head_dim": 2**23, "num_attention_heads": 2**23},
                "num_attention_heads times head_dim must be at most 16,777,216, not 70,368,744,177,664",
            ),
            ({"num_key_value_heads": 3}, "num_attention_heads (2) must be a multiple of num_key_value_heads (3)"),
            ({"head_dim": 3}, "head_dim (3) must be even, since rotary positions turn features in pairs"),
            ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number, not nan"),
            ({"rms_norm_eps": 10**400}, f"rms_norm_eps must be a finite number, not {10**400}"),
            ({"vocab_size": 11.0}, "vocab_size must be a whole number, not 11.0"),
            ({"hidden_size": "layers, not heads"}, "hidden_size must be a whole number, not 'layers, not heads'"),
            ({"vocab_size": True}, "vocab_size must be a whole number, not True"),
            (
                {"hidden_act": "tanh"},
                "hidden_act = 'tanh' is not supported, and leaving it out would change the model's answers",
            ),
            ({"attention_bias": "yes"}, "attention_bias must be of type bool, not 'yes'"),
            ({"rope_scaling": None, "rope_parameters": 3}, "rope_parameters is 3, which is no table of settings"),
            (
                {"rope_scaling": {"rope_type": "longrope"}},
                "rope_type 'longrope' is not supported; known are default, dynamic, linear, llama3 and yarn",
            ),
            ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "factor = 'two' is not a number"),
        ],
    )  # fmt: skip
    def test_a_field_that_makes_no_sense(self, folder, fields, sentence):
        set_config(folder, **fields)
        assert complaint(folder) == f"FOLDER/config.json: {sentence}"

    @pytest.mark.parametrize(
        ("family", "field"),
        [("gpt2", "activation_function"), ("bert", "hidden_act"), ("distilbert", "activation")],
    )
    @pytest.mark.parametrize("value", ["quick_gelu", "gelu_tanh", ["gelu"], 3])
    def test_an_unknown_activation(self, family, field, value, tmp_path):
        folder = save(family, tmp_path / "model")
        set_config(folder, **{field: value})
        assert complaint(folder) == (
            f"FOLDER/config.json: {field} = {value!r} is not supported; known are gelu, gelu_new, gelu_pytorch_tanh, relu, silu"
        )

    @pytest.mark.parametrize("family", MODELS)
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("num_local_experts", 8),
            ("num_experts", 1),
            ("attn_logit_softcapping", 50.0),
            ("final_logit_softcapping", 30.0),
            ("residual_multiplier", 0.22),
            ("embedding_multiplier", 12.0),
            ("logits_scaling", 8.0),
            ("attention_multiplier", 0.5),
            ("layer_types", ["sliding_attention"]),
            ("layer_types", "full_attention"),
            ("layer_types", [[]]),
            ("sliding_window", 4),
        ],
    )
    def test_a_field_of_another_network(self, family, field, value, tmp_path):
        folder = save(family, tmp_path / "model")
        set_config(folder, **{field: value})
        if field == "sliding_window" and family in ("qwen2", "qwen3"):  # which use_sliding_window switches off
            load_network(folder)
        else:
            assert complaint(folder) == f"FOLDER/config.json: {field} = {value!r} is {CHANGES}"

    def test_fields_of_other_networks_that_change_nothing(self, folder):
        before = load_network(folder).config
        names = ("residual_multiplier", "embedding_multiplier", "logits_scaling", "attention_multiplier")
        nothing = dict.fromkeys(("num_local_experts", "attn_logit_softcapping", "sliding_window", "quantization_config"))
        set_config(folder, **dict.fromkeys(names, 1.0), **nothing, layer_types=["full_attention"])
        assert load_network(folder).config == before

    def test_quantised_weights(self, folder):
        set_config(folder, quantization_config={"quant_method": "gptq"})
        assert complaint(folder) == (
            "FOLDER/config.json: the weights are quantised (quantization_config = {'quant_method': 'gptq'}), of which only "
            "GGUF's kinds can be read; take the model as it was before, or as a GGUF file"
        )

    @pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
    @pytest.mark.parametrize("kind", ["default", "dynamic", "linear", "yarn"])
    def test_heads_that_are_rotated_in_part(self, family, kind, tmp_path):
        folder = save(family, tmp_path / "model")
        rope = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 4}
        for fields in (
            {"partial_rotary_factor": 0.5, "rope_scaling": rope},
            {"rope_scaling": rope | {"partial_rotary_factor": 0.5}},
        ):
            set_config(folder, **{"partial_rotary_factor": 1.0} | fields)
            assert complaint(folder) == f"FOLDER/config.json: partial_rotary_factor = 0.5 is {CHANGES}"
        set_config(folder, partial_rotary_factor=1, rope_scaling=rope | {"partial_rotary_factor": 1.0})
        load_network(folder)


IGNORED = {  # that change nothing here: ids of special tokens, and what describes the file
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "model_type", "is_encoder_decoder",
    "embd_pdrop", "attn_pdrop", "attention_probs_dropout_prob", "attention_dropout",
}  # fmt: skip
NULLABLE = {"head_dim", "num_key_value_heads", "sliding_window"}  # where null says something else than nothing
POSSIBLE = [("sliding_window", 2**70), ("sliding_window", 10**400), ("pad_token_id", -1)]
WRONG = ["abc", "", -1, -0.5, True, 1.5, [], [1], {}, {"a": 1}, float("nan"), float("inf"), 10**400, 2**70]


@pytest.mark.parametrize("family", MODELS)
def test_every_field_of_every_family_refuses_what_it_cannot_be(family, tmp_path):
    folder = save(family, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    tried = 0
    for field, written in fields.items():
        if field in IGNORED - ({"pad_token_id"} if family == "roberta" else set()) or field in (
            "rope_theta",
            "rope_parameters",
        ):
            continue
        for value in WRONG:
            if (isinstance(written, bool) and isinstance(value, bool)) or (field, value) in POSSIBLE:
                continue
            (folder / "config.json").write_text(json.dumps(fields | {field: value}))
            with pytest.raises(PellucidError) as caught:
                load_network(folder)
            assert "config.json" in str(caught.value), (field, value)
            tried += 1
    assert tried >= 5 * len(WRONG) - 10
    for field in fields.keys() - IGNORED - NULLABLE:  # null: as if it were left out, or refused
        (folder / "config.json").write_text(json.dumps(fields | {field: None}))
        try:
            without = load_network(folder).config
        except PellucidError:
            continue
        (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items() if name != field}))
        assert load_network(folder).config == without, field


class TestWeights:
    def test_missing_tensors_are_all_named(self, folder):
        set_tensors(folder, model__norm__weight=None, model__layers__0__mlp__up_proj__weight=None)
        assert complaint(folder) == (
            "FOLDER/model.safetensors lacks 2 of 11 tensors: model.layers.0.mlp.up_proj.weight, model.norm.weight"
        )

    def test_of_very_many_twenty_are_named(self, folder):
        set_config(folder, num_hidden_layers=4)
        assert re.fullmatch(r"FOLDER/model.safetensors lacks 27 of 38 tensors: (\S+, ){20}and 7 more", complaint(folder))

    def test_surplus_tensors_are_all_named(self, folder):
        set_tensors(folder, score__weight=torch.ones(2), other=torch.ones(1))
        assert complaint(folder) == (
            "FOLDER/model.safetensors has 2 tensors that the configuration knows nothing of: other, score.weight"
        )

    def test_wrong_shapes_are_all_named(self, folder):
        set_tensors(folder, model__norm__weight=torch.ones(9), model__embed_tokens__weight=torch.ones(11))
        assert complaint(folder) == (
            "FOLDER/model.safetensors: model.embed_tokens.weight has shape (11,), but the configuration asks for (11, 8); "
            "model.norm.weight has shape (9,), but the configuration asks for (8,)"
        )

    def test_what_is_missing_surplus_and_misshapen_is_named_in_one_sentence(self, folder):
        set_tensors(folder, model__norm__weight=None, other=torch.ones(1), model__embed_tokens__weight=torch.ones(11))
        assert complaint(folder) == (
            "FOLDER/model.safetensors lacks 1 of 11 tensors: model.norm.weight; has 1 tensors that the configuration knows "
            "nothing of: other; model.embed_tokens.weight has shape (11,), but the configuration asks for (11, 8)"
        )

    def test_a_tensor_of_several_of_ours_is_named_once(self, tmp_path):
        folder = save("gpt2", tmp_path / "model")
        set_tensors(folder, transformer__h__0__attn__c_attn__weight=torch.ones(8, 23))
        assert complaint(folder) == (
            "FOLDER/model.safetensors: transformer.h.0.attn.c_attn.weight has shape (8, 23), "
            "but the configuration asks for (8, 24)"
        )

    @pytest.mark.parametrize(
        ("dtype", "name"),
        [
            (torch.int8, "I8"),
            (torch.int32, "I32"),
            (torch.int64, "I64"),
            (torch.uint8, "U8"),
            (torch.bool, "BOOL"),
            (torch.float8_e4m3fn, "F8_E4M3"),
            (torch.float8_e5m2, "F8_E5M2"),
        ],
    )
    def test_tensors_of_types_that_are_not_read_are_all_named(self, folder, dtype, name):
        """Whole numbers are no weights; and eight bits are for files of quantised weights, which say more."""
        set_tensors(folder, model__norm__weight=torch.ones(8).to(dtype), lm_head__weight=torch.ones(11, 8).to(dtype))
        assert complaint(folder) == (
            f"FOLDER/model.safetensors: lm_head.weight is of type {name}; weights are read of the types F64, F32, F16, BF16"
        )
        set_tensors(folder, lm_head__weight=None, model__layers__0__input_layernorm__weight=torch.ones(8).to(torch.int16))
        assert complaint(folder) == (
            f"FOLDER/model.safetensors: model.norm.weight is of type {name}, model.layers.0.input_layernorm.weight is of type "
            "I16; weights are read of the types F64, F32, F16, BF16"
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_weights_that_are_not_finite_are_named(self, folder, value, dtype):
        bad = torch.ones(8, dtype=dtype)
        bad[5] = value
        set_tensors(folder, model__norm__weight=bad)
        assert complaint(folder) == "FOLDER/model.safetensors: values that are not finite in model.norm.weight"

    def test_a_number_too_large_for_the_type_asked_for_is_not_finite(self, folder):
        set_tensors(folder, model__norm__weight=torch.full((8,), 1e6))
        with pytest.raises(ModelError, match=r"values that are not finite in model.norm.weight$"):
            load_network(folder, dtype=torch.float16)

    def test_a_head_that_differs_from_the_embedding_it_is_tied_to(self, folder):
        set_tensors(folder, lm_head__weight=torch.ones(11, 8))
        assert complaint(folder) == (
            "FOLDER/model.safetensors: lm_head.weight differs from model.embed_tokens.weight, but config.json says that they "
            'are one; set "tie_word_embeddings" to false there if they are two'
        )

    def test_a_head_that_repeats_the_embedding_is_welcome(self, folder):
        set_tensors(folder, lm_head__weight=load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone())
        assert load_network(folder).head is not None

    @pytest.mark.parametrize(
        "name",
        ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "PyTorch_Model.bin", "model.pt", "x.pth", "a.CKPT", "w.pkl"],
    )
    def test_a_pickle_is_not_read(self, folder, name):
        (folder / "model.safetensors").rename(folder / name)
        (folder / "zz.pt").touch()
        assert complaint(folder) == (
            f"FOLDER/{name} is a pickle, which can run any code when it is read, so it is not; convert it with "
            "transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)"
        )

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        assert complaint(folder) == "FOLDER has no model.safetensors"


def move(header, name, start, end):
    header[name]["data_offsets"] = [start, end]


class TestHeader:
    @pytest.mark.parametrize(
        "change",
        [
            lambda h: move(h, "model.norm.weight", 0, 32),  # overlaps
            lambda h: move(h, "model.norm.weight", 10**9, 10**9 + 32),  # outside the file
            lambda h: move(h, "model.norm.weight", -32, 0),
            lambda h: move(h, "model.norm.weight", 32, 0),
            lambda h: h["model.norm.weight"].update(shape=[10**6]),  # more than there is
            lambda h: h["model.norm.weight"].update(shape=[2**32, 2**32]),
            lambda h: h["model.norm.weight"].update(shape=[-8]),
            lambda h: h["model.norm.weight"].update(dtype="F64"),
            lambda h: h["model.norm.weight"].update(dtype="F3"),
            lambda h: h["model.norm.weight"].pop("dtype"),
            lambda h: h.update({"model.norm.weight": 3}),
            lambda h: h.update({"hole": {"dtype": "F32", "shape": [0], "data_offsets": [10**18, 10**18]}}),
        ],
    )
    def test_a_header_that_lies(self, folder, change):
        set_header(folder, change)
        assert re.fullmatch(
            r"FOLDER/model.safetensors is not a whole safetensors file \(.*\); copy it again", complaint(folder)
        )

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"abc",
            b"\0" * 8,
            b"\xff" * 100,
            (10**12).to_bytes(8, "little") + b"{}",
            b"\2\0\0\0\0\0\0\0[]",
            b"\2\0\0\0\0\0\0\0{}",
        ],
    )
    def test_no_header(self, folder, data):
        (folder / "model.safetensors").write_bytes(data)
        assert re.fullmatch(
            r"FOLDER/model.safetensors (is not a whole safetensors file \(.*\); copy it again|lacks 11 of 11 tensors: .*)",
            complaint(folder),
        )


class TestShards:
    @pytest.fixture
    def sharded(self, folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(sorted(tensors))}
        for file in set(names.values()):
            save_file({name: tensors[name] for name in names if names[name] == file}, folder / file)
        self.index(folder, names)
        return folder

    def index(self, folder, weight_map):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def test_it_loads(self, sharded):
        stored = [tensor for file in sharded.glob("model-*.safetensors") for tensor in load_file(file).values()]
        assert sum(weight.numel() for weight in load_network(sharded).parameters()) == sum(map(torch.numel, stored))

    def test_missing_ones_are_named(self, sharded):
        (sharded / "model-0.safetensors").unlink()
        (sharded / "model-2.safetensors").unlink()
        assert complaint(sharded) == "FOLDER lacks 2 of 3 shards: model-0.safetensors, model-2.safetensors; download them"

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", ".."])
    def test_a_name_that_leads_out_of_the_folder(self, sharded, name):
        self.index(sharded, {"x": name})
        assert complaint(sharded) == f"FOLDER: the file name {name!r} leads out of the folder; name a file inside it"

    @pytest.mark.parametrize("name", ["", "."])
    def test_a_name_that_is_the_folder(self, sharded, name):
        self.index(sharded, {"x": name})
        assert complaint(sharded) == "FOLDER is a folder, a device or a broken link; replace it by a regular file"

    @pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
    def test_an_index_of_another_form(self, sharded, index):
        (sharded / "model.safetensors.index.json").write_text(index)
        assert complaint(sharded) == (
            "FOLDER/model.safetensors.index.json does not say which file holds which tensor; download it again"
        )

    def test_a_tensor_in_two_shards(self, sharded):
        (sharded / "model-0.safetensors").write_bytes((sharded / "model-1.safetensors").read_bytes())
        assert re.fullmatch(
            r"FOLDER/model-1.safetensors: tensor \S+ is in another shard too; download the shards again", complaint(sharded)
        )


class TestLinks:
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_link_out_of_the_folder(self, folder, tmp_path, name):
        elsewhere = tmp_path / f"elsewhere-{name}"
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)
        assert complaint(folder) == (
            f"FOLDER/{name} is a link to {elsewhere.resolve()}, outside its folder; replace it by a copy of the file"
        )

    def test_a_link_inside_it_is_fine(self, folder):
        (folder / "model.safetensors").rename(folder / "weights.bin")
        (folder / "model.safetensors").symlink_to("weights.bin")
        stored = load_file(folder / "weights.bin").values()
        assert sum(weight.numel() for weight in load_network(folder).parameters()) == sum(map(torch.numel, stored))


class TestHugeDimensions:
    """What is refused before anything is allocated: in a second, and in no memory."""

    @pytest.mark.parametrize(
        ("family", "fields"),
        [
            ("llama", {"vocab_size": 2**24, "hidden_size": 2**23, "head_dim": 4}),
            ("llama", {"hidden_size": 2**23, "intermediate_size": 2**24, "head_dim": 2**22}),
            ("llama", {"num_hidden_layers": 4096, "hidden_size": 2**22}),
            ("llama", {"max_position_embeddings": 2**31 - 1}),  # which needs no memory
            ("gpt2", {"n_positions": 2**31 - 1, "n_embd": 2**24}),
            ("bert", {"max_position_embeddings": 2**31 - 1, "type_vocab_size": 2**24, "hidden_size": 2**23}),
            ("t5", {"num_layers": 4096, "num_decoder_layers": 4096, "d_ff": 2**24}),
            ("t5", {"relative_attention_num_buckets": 2**24, "relative_attention_max_distance": 2**24, "num_heads": 2**22}),
            ("lstm", {"hidden_size": 2**24, "vocab_size": 2**24}),
            ("bag-of-words", {"hidden_size": 2**24, "num_layers": 4096}),
        ],
    )
    def test_are_refused_at_once(self, family, fields, tmp_path):
        folder = save(family, tmp_path / "model")
        set_config(folder, **fields)
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if fields.keys() == {"max_position_embeddings"}:
            load_network(folder)
        else:
            with pytest.raises(ModelError, match=r"lacks|the configuration asks for"):
                load_network(folder)
        assert time.monotonic() - started < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB

    def test_a_file_of_very_many_layers_is_soon_read(self, tmp_path):
        """4,096 layers of a number or two each are absurd, but no bomb."""
        folder = save("bag-of-words", tmp_path / "model", layers=1)
        set_config(folder, num_layers=4096)
        started = time.monotonic()
        assert "lacks 8190 of 8191 tensors" in complaint(folder)
        assert time.monotonic() - started < 5


class TestSaving:
    @pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
    def test_dropout_of_attention_weights_is_not_ours(self, family, tmp_path):
        """transformers would drop attention weights where we drop what blocks add: neither is taken for the other."""
        folder = save(family, tmp_path / "model", dropout=0.2)
        assert json.loads((folder / "config.json").read_text())["attention_dropout"] == 0.0
        set_config(folder, attention_dropout=0.3)
        assert load_network(folder).config.dropout == 0.0

    def test_what_a_family_cannot_say_is_refused(self, tmp_path):
        """`config.json` of GPT-2 has no place for a head width; what it would be read as is another network."""
        network = randomised(FAMILIES["gpt2"].new(**SMALL | {"d_head": 3}))
        with pytest.raises(
            ConfigError, match=r"no gpt2 model has d_head = 3; choose another family, or the family's own values"
        ):
            save_network(network, tmp_path)
        assert not list(tmp_path.iterdir())

    def test_over_the_folder_that_it_was_loaded_from(self, folder):
        """Its weights are views of the file that is being replaced."""
        network = load_network(folder)
        before = {name: weight.clone() for name, weight in network.state_dict().items()}
        save_network(network, folder)
        assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
        assert all(torch.equal(weight, before[name]) for name, weight in load_network(folder).state_dict().items())

    def test_a_config_alone_can_be_read(self, folder):
        (folder / "model.safetensors").unlink()
        assert read_config(folder).layers == 1
