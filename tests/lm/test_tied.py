"""A head of its own stays one: however a model is loaded its config says so, and nobody ties it later."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from damaged_checkpoint import ON_DISK, as_bin, edit_config
from torch import nn
from transformers import AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.evaluators.zero_shot import _Scorer
from ffprune_env.export.dense_folder import save_dense
from ffprune_env.lm.loading_report import load_whole
from ffprune_env.lm.models import load_model
from ffprune_env.lm.tied import is_tied
from ffprune_env.pruning.prunable import PrunableModel


def own_head(said=True):
    """A model with a head of its own, and a config that says so or does not."""
    model = tiny_model("llama").float()
    model.config.tie_word_embeddings = said
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    return model


def one_tensor():
    """A model whose head is the embedding although its config says that it is not."""
    model = tiny_model("llama").float()
    model.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach())
    assert not model.config.tie_word_embeddings
    return model


def dense_folder(folder):
    own_head().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def dense(folder, **options):
    return load_model(str(dense_folder(folder)), "float32", **options)[0]


def from_bin(folder):
    as_bin(dense_folder(folder))
    return load_model(str(folder), "float32")[0]


def from_hub(folder, monkeypatch):
    from huggingface_hub import constants

    repository = folder / "hub" / "models--somebody--tiny"
    shutil.copytree(dense_folder(folder / "dense"), repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    return load_whole(AutoModelForCausalLM, "somebody/tiny")


def from_pruned(folder):
    """All of it, in the layout of a pruned model."""
    prunable = PrunableModel(own_head())
    prunable.rank([range(unit.n_groups) for unit in prunable.units])
    ff.save_pruned(prunable, [unit.n_groups for unit in prunable.units], folder)
    edit_config(folder, tie_word_embeddings=True)
    return ff.load_pruned(folder)


@pytest.mark.parametrize("way", ["folder", "bin", "hub", "pruned", "spread"])
def test_every_way_of_loading_leaves_a_config_that_is_true(way, tmp_path, monkeypatch, windows):
    model = {
        "folder": lambda: dense(tmp_path),
        "bin": lambda: from_bin(tmp_path),
        "hub": lambda: from_hub(tmp_path, monkeypatch),
        "pruned": lambda: from_pruned(tmp_path),
        "spread": lambda: dense(tmp_path, **ON_DISK),
    }[way]()
    assert model.config.tie_word_embeddings is False
    expected = own_head()(windows).logits
    torch.testing.assert_close(model(windows).logits, expected, rtol=0, atol=1e-4)
    model.tie_weights()
    torch.testing.assert_close(model(windows).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, ON_DISK], ids=["memory", "disk"])
def test_a_head_that_is_stored_twice_is_one(tmp_path, options):
    model = own_head()
    model.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), "float32", **options)[0]
    assert loaded.config.tie_word_embeddings
    assert is_tied(loaded)


@pytest.mark.parametrize("make", [own_head, one_tensor])
def test_zero_shot_leaves_the_weights_of_a_users_model_as_they_are(make, windows):
    model, tokenizer = make(), byte_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    said, expected, head = model.config.tie_word_embeddings, model(windows).logits, model.lm_head.weight
    _Scorer(model, tokenizer, 1, None)
    assert model.lm_head.weight is head
    assert torch.equal(model(windows).logits, expected)
    assert model.config.tie_word_embeddings is said
    model.tie_weights()  # it can be done by who wants it
    assert model.lm_head.weight is (model.get_input_embeddings().weight if said else head)


@pytest.mark.parametrize(("make", "tied"), [(own_head, False), (one_tensor, True)])
def test_a_dense_model_is_written_as_it_is(make, tied, tmp_path, windows):
    model = make()
    said, expected = model.config.tie_word_embeddings, model(windows).logits
    read = save_dense(PrunableModel(model), byte_tokenizer(), tmp_path / "dense")
    assert (is_tied(read), read.config.tie_word_embeddings) == (tied, tied)
    assert model.config.tie_word_embeddings is said
    torch.testing.assert_close(read(windows).logits, expected, rtol=0, atol=1e-5)
