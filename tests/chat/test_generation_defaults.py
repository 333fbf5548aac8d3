"""Sampling defaults and stop tokens, told from a checkpoint's files."""

import json

import pytest

from erniechat.chat.generation_defaults import (
    read_generation_config,
    sampling_defaults,
    stop_token_ids,
)
from erniechat.chat.template import ChatTemplate
from erniechat.errors import CheckpointError
from erniechat.options import SamplingOptions


def options(**values):
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return SamplingOptions(**{**neutral, "repetition_penalty": 1.0, **values})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, options(temperature=0.8, top_p=0.8)),
        ({"eos_token_id": 2}, options(temperature=0.8, top_p=0.8)),
        ({"repetition_penalty": 1.1}, options(temperature=0.8, top_p=0.8, repetition_penalty=1.1)),
        ({"temperature": 0.6, "top_p": 0.95}, options(temperature=0.6, top_p=0.95)),
        ({"temperature": None, "top_p": 0.9}, options(top_p=0.9)),
        ({"do_sample": True}, options()),
        ({"do_sample": True, "top_k": 40, "min_p": 0.1}, options(top_k=40, min_p=0.1)),
        ({"do_sample": False}, options(temperature=0.0)),
        (
            {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.2},
            options(temperature=0.0, repetition_penalty=1.2),
        ),
        ({"do_sample": None, "temperature": 0.6}, options(temperature=0.6)),
    ],
)
def test_sampling_defaults(config, expected):
    assert sampling_defaults(config) == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"temperature": -1.0}, "--temperature must be a number at least 0 and at most 5, got"),
        ({"top_p": 2}, "--top-p must be"),
        ({"top_k": "many"}, 'top_k must be a number, got "many"'),
        ({"min_p": True}, 'min_p must be a number, got "True"'),
    ],
)
def test_a_bad_value_is_a_checkpoint_error(config, text):
    with pytest.raises(CheckpointError) as info:
        sampling_defaults(config)
    assert str(info.value).startswith("generation_config.json: ")
    assert text in str(info.value)


def test_generation_config_is_read(tmp_path):
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    assert read_generation_config(tmp_path) == {"temperature": 0.5}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not JSON"):
        read_generation_config(tmp_path)


def test_stop_tokens_are_the_turn_ends_that_the_template_writes(
    tiny_tagged, pt_template, thinking_template, switchable_template
):
    eos, sep, cls, im_end = (
        tiny_tagged.token_id(text)
        for text in ("</s>", "<|end_of_sentence|>", "<|begin_of_sentence|>", "<|im_end|>")
    )
    assert stop_token_ids(tiny_tagged, pt_template) == {eos, sep, cls}
    assert stop_token_ids(tiny_tagged, thinking_template) == {eos, im_end}
    assert stop_token_ids(tiny_tagged, switchable_template) == {eos, im_end}
    assert stop_token_ids(tiny_tagged, None) == {eos, sep, cls}


def test_stop_tokens_of_the_configs_are_added(tiny_plain, switchable_template):
    eos = tiny_plain.token_id("</s>")
    configs = [{"eos_token_id": 40}, {"eos_token_id": [41, 42]}, {"eos_token_id": None}, {}]
    assert stop_token_ids(tiny_plain, switchable_template, *configs) == {eos, 40, 41, 42}


def test_an_eos_token_id_that_names_no_token_stops_nothing(tiny_plain, switchable_template):
    rows = {"eos_token_id": [40, tiny_plain.num_tokens, 103_423, -1]}  # of the embedding: padding
    eos = tiny_plain.token_id("</s>")
    assert stop_token_ids(tiny_plain, switchable_template, rows) == {eos, 40}


def test_a_template_that_takes_single_questions_only_is_searched_for_turn_ends(tiny_tagged):
    source = (
        "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
        "{{ messages[0].content }}{% if false %}<|im_end|>{% endif %}"
    )
    stop_ids = stop_token_ids(tiny_tagged, ChatTemplate(source))
    assert stop_ids == {tiny_tagged.token_id("</s>"), tiny_tagged.token_id("<|im_end|>")}


@pytest.mark.parametrize("value", ["2", [2, None], True, 2.5, {"id": 2}])
def test_an_eos_token_id_that_is_no_number_is_a_checkpoint_error(tiny_plain, value):
    with pytest.raises(CheckpointError, match="eos_token_id must be a number or a list"):
        stop_token_ids(tiny_plain, None, {"eos_token_id": value})


@pytest.mark.parametrize(
    ("folder", "tokenizer", "stop_ids", "sampling"),
    [
        ("pt_folder", "pt_tokenizer", {2, 100272, 100273}, {"temperature": 0.8, "top_p": 0.8}),
        ("thinking_folder", "thinking_tokenizer", {2, 100308}, {"temperature": 0.6, "top_p": 0.95}),
        ("mini_folder", "mini_tokenizer", {2, 4087}, {"temperature": 0.0}),
    ],
)
def test_real_checkpoints(request, folder, tokenizer, stop_ids, sampling):
    folder = request.getfixturevalue(folder)
    generation_config = read_generation_config(folder)
    config = json.loads((folder / "config.json").read_text())
    assert sampling_defaults(generation_config) == options(**sampling)
    tokenizer = request.getfixturevalue(tokenizer)
    template = ChatTemplate.from_folder(folder)
    assert stop_token_ids(tokenizer, template, config, generation_config) == stop_ids
