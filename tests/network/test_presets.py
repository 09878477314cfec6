"""Large or small is one word: a published model's name gives its dimensions, and so its count of parameters."""

from dataclasses import replace

import pytest
import torch
import transformers

from pellucid.core.files import write_json
from pellucid.network.build import outline, parameters
from pellucid.network.families import FAMILIES
from pellucid.network.presets import ALIASES, MODELS, preset
from pellucid.network.sizes import PRESETS
from pellucid.network.weights import CONFIG, read_config

# Of the published checkpoint, exactly; of the encoders without the masked-token head and, where there is one, with the pooler.
COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "bert-base-chinese": 102_267_648,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
    "distilbert-base": 66_362_880,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}
# As Brown et al. (2020) round them: no checkpoint was published.
ROUNDED = {
    "gpt3-125m": 125e6,
    "gpt3-350m": 350e6,
    "gpt3-760m": 760e6,
    "gpt3-1.3b": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13e9,
    "gpt3-175b": 174.6e9,
}


def counted(config):
    """The part of the network that the published count is of."""
    return replace(config, head="none", pooler=config.family != "distilbert") if config.architecture == "encoder" else config


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_published_model_has_exactly_the_published_count(name, count):
    assert parameters(counted(preset(name))) == count


@pytest.mark.parametrize(("name", "count"), ROUNDED.items())
def test_gpt3_has_the_counts_that_its_paper_rounds(name, count):
    assert parameters(preset(name)) == pytest.approx(count, rel=0.02)


def test_every_preset_has_a_published_count():
    assert MODELS.keys() == COUNTS.keys() | ROUNDED.keys()
    assert not MODELS.keys() & PRESETS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_transformers_makes_as_many_parameters_from_the_file_that_is_written(name):  # an independent count
    config = preset(name)
    file = FAMILIES[config.family].config_to_file(config)
    with torch.device("meta"):
        theirs = getattr(transformers, file["architectures"][0])(transformers.AutoConfig.for_model(**file))
    count, head = theirs.num_parameters(), theirs.get_output_embeddings().weight
    if not config.tied and head is theirs.get_input_embeddings().weight:  # a T5 1.1 has no head of its own until it is loaded
        count += head.numel()
    assert count == parameters(config)


# The defaults of these classes are the published configuration of one model: whatever does not show in a count is as it says.
DEFAULTS = {
    "gpt2": "GPT2Config",
    "bert-base": "BertConfig",
    "distilbert-base": "DistilBertConfig",
    "t5-small": "T5Config",
}


@pytest.mark.parametrize(("name", "kind"), DEFAULTS.items())
def test_what_no_count_shows_is_as_transformers_has_it_by_default(name, kind):
    config, default = preset(name), getattr(transformers, kind)().to_dict()
    file = FAMILIES[config.family].config_to_file(config)
    shown = (file.keys() & default.keys()) - {"architectures", "n_inner"}  # an n_inner of None is 4 n_embd
    assert {field: file[field] for field in shown} == {field: default[field] for field in shown}


def test_rotary_positions_that_read_further_are_as_published():
    scaling = preset("llama-3.2-1b").rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_context, scaling.low, scaling.high) == ("llama3", 32, 8192, 1, 4)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_keeps_a_preset_whole(name, tmp_path):
    config = preset(name)
    write_json(tmp_path / CONFIG, FAMILIES[config.family].config_to_file(config))
    assert read_config(tmp_path) == config


def test_a_preset_takes_the_vocabulary_and_context_of_a_run():
    mine = replace(preset("gpt2-medium"), vocab_size=1000, context_length=64)
    network = outline(mine)
    assert (network.embedding.weight.shape, network.positions.weight.shape) == ((1000, 1024), (64, 1024))
    assert (mine.layers, mine.heads, mine.d_mlp) == (24, 16, 4096)


def test_names_are_known_in_any_case_and_others_are_not():
    assert preset("GPT2-XL") == preset("gpt2-xl")
    assert preset("175b") == preset("gpt3-175b")
    assert ALIASES.keys().isdisjoint(MODELS)
    assert preset("gpt2-xxl") is preset("25M") is None
