"""Windows that begin with the BOS token, where a model needs it or somebody asks for it."""

from __future__ import annotations

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from tokenizers.processors import TemplateProcessing

from ffprune_env.export.model_card import CardFacts
from ffprune_env.lm.identity import identity_of_settings, require_same
from ffprune_env.run.config import translated
from ffprune_env.texts.bos import bos_protocol, stated
from ffprune_env.texts.plan_rows import windows_made
from ffprune_env.texts.window_plan import load_planned_windows
from ffprune_env.texts.window_settings import WindowSettings
from ffprune_env.texts.windows import load_test_windows, load_windows

BOS = 7


def with_bos():
    """A tokenizer that puts BOS before every text, as those of Llama and Gemma do."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(BOS)
    template = TemplateProcessing(single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, BOS)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@pytest.fixture(scope="module")
def gemma():
    return tiny_model("gemma2")


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def test_every_window_begins_with_it_and_the_text_goes_on(text_file):
    tokenizer = with_bos()
    text = tokenizer(text_file.read_text(), add_special_tokens=False)["input_ids"]
    for n_windows in (None, 5):
        windows = load_windows(str(text_file), tokenizer, "all", 64, n_windows, bos="always")
        assert windows.dtype == torch.int64
        assert windows.shape == (n_windows or len(text) // 63, 64)
        assert (windows[:, 0] == BOS).all()
        assert windows[:, 1:].flatten().tolist() == text[: windows[:, 1:].numel()]


def test_without_it_windows_are_cut_from_what_the_tokenizer_gives(text_file, llama):
    """The protocol of the paper: BOS stands before the whole text."""
    tokenizer = with_bos()
    tokens = tokenizer(text_file.read_text())["input_ids"]
    assert tokens[0] == BOS
    for asked in ({"bos": "never"}, {"model": llama}, {}):
        windows = load_windows(str(text_file), tokenizer, "all", 64, **asked)
        assert windows.flatten().tolist() == tokens[: windows.numel()]


def test_auto_is_what_the_model_needs(gemma, llama):
    tokenizer = with_bos()
    assert [bos_protocol("auto", model, tokenizer) for model in (gemma, llama, None)] == ["always", "never", "never"]
    assert bos_protocol("auto", gemma, byte_tokenizer()) == "never"
    assert bos_protocol("never", gemma, tokenizer) == "never"
    gemma.config.model_type, before = f"ffprune_{gemma.config.model_type}", gemma.config.model_type
    assert bos_protocol("auto", gemma, tokenizer) == "always"
    gemma.config.model_type = before


def test_what_cannot_be_is_refused_in_a_line(text_file):
    with pytest.raises(ValueError, match=r"the tokenizer has none: say --bos never$"):
        load_windows(str(text_file), byte_tokenizer(), "all", 64, bos="always")
    with pytest.raises(ValueError, match=r"unknown bos 'on'; allowed are auto, always, never$"):
        load_windows(str(text_file), byte_tokenizer(), "all", 64, bos="on")


def test_all_windows_of_a_plan_begin_alike(text_file, gemma):
    tokenizer = with_bos()
    asked = WindowSettings(seq_len=32, search_windows=2, final_windows=2, curve_windows=2, calibration_windows=4)
    planned = load_planned_windows(gemma, tokenizer, str(text_file), asked)
    test = load_test_windows(str(text_file), None, tokenizer, 32, 3, model=gemma, bos=asked.bos)
    for windows in (*planned.texts.values(), test):
        assert (windows[:, 0] == BOS).all()
        assert (windows[:, 1:] != BOS).all()
    assert windows_made({**planned.texts, "test": test}, "always")["bos"] == "always"


def test_it_is_stated_with_figures():
    windows = torch.zeros(8, 64, dtype=torch.int64)
    facts = [CardFacts.of("m", "t.txt", windows, "c.txt", windows, bos) for bos in ("always", "never")]
    assert facts[0].protocol == "t.txt test text, 8 windows of 64 tokens, the first of them BOS"
    assert facts[1].protocol == "t.txt test text, 8 windows of 64 tokens"
    assert facts[0].calibrated_on is not None
    assert facts[0].calibrated_on.endswith(stated("always"))


def test_what_was_made_before_there_was_a_choice_had_none():
    assert translated({"seq_len": 64})["bos"] == "never"
    assert translated({"seq_len": 64, "bos": "auto"})["bos"] == "auto"
    assert "bos" not in translated({"seed": 1})
    require_same({}, identity_of_settings({"bos": "never"}), "x", "y")
    with pytest.raises(ValueError, match="--bos"):
        require_same({}, identity_of_settings({"bos": "always"}), "x", "y")


@pytest.mark.parametrize("split", ["search", "calibration"])
def test_a_text_begins_once_wherever_windows_are_taken_from_it(text_file, split):
    """As in test text, only the first window begins with what the tokenizer puts before a text."""
    few = load_windows(str(text_file), with_bos(), split, 64, 6)
    every = load_windows(str(text_file), with_bos(), split, 64)
    for windows in (few, every):
        assert (windows == BOS).nonzero().tolist() == [[0, 0]]
