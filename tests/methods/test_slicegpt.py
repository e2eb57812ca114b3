"""SliceGPT: rotations change nothing, cutting is projecting, and every parameter that is added is counted."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from conftest import FAMILIES, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import ffprune_env as ff
from ffprune_env.methods.rebuilding.principal_components import measure_bases, principal_components
from ffprune_env.methods.rebuilding.residual_blocks import SlicedEmbedding, find_residual_model
from ffprune_env.methods.rebuilding.slicegpt import ParameterCount, slice_to, slicegpt
from ffprune_env.pruning.prunable import PrunableModel
from ffprune_env.pruning.saliency import collect_statistics, wanda_scores

SLICEABLE = [name for name in FAMILIES if name != "gemma2"]
pytestmark = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")


def build(model_type, **changes):
    """A tiny model of a family the design does not name, or with other settings."""
    settings = {key: value for key, value in FAMILIES["opt"][1].items() if model_type == "opt" or key != "ffn_dim"}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**settings, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def count(model):
    return sum(p.numel() for p in model.parameters())


def logits(model, windows):
    with torch.no_grad():
        return model(windows).logits


def kept(model):
    """Dimensions of the hidden state between its layers."""
    return model.get_decoder().layers[0].ffn_shortcut.in_features


def norms(model):
    """Norms of the hidden state in the order in which they run."""
    decoder = model.get_decoder()
    found = [x for layer in decoder.layers for x in layer.children() if "Norm" in type(x).__name__]
    return [*found, *(x for x in decoder.children() if "Norm" in type(x).__name__)]


def largest_difference(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.fixture
def in_float64(monkeypatch):
    """Norms of the dense model that do not compute in float32, so that equality can be exact."""

    def exact(module, x):
        return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)

    for family in SLICEABLE:
        norm = norms(tiny_model(family))[0]
        if not isinstance(norm, nn.LayerNorm):
            monkeypatch.setattr(type(norm), "forward", exact)


@pytest.mark.parametrize("family", SLICEABLE)
def test_nothing_sliced_is_the_dense_function(family, windows, in_float64):
    model = tiny_model(family)
    rotated = slicegpt(model, windows, removed=0)
    assert kept(rotated) == 32
    assert largest_difference(logits(rotated, windows), logits(model, windows)) < 1e-9
    sliced = rotated.get_decoder().layers[0].attention.q_proj.weight
    assert not torch.allclose(sliced, model.get_decoder().layers[0].self_attn.q_proj.weight)
    shortcut = rotated.get_decoder().layers[1].ffn_shortcut.weight
    torch.testing.assert_close(shortcut @ shortcut.T, projection_of(shortcut), rtol=1e-9, atol=1e-9)


def projection_of(shortcut):
    """What an orthogonal shortcut gives with its transpose: the identity, less the mean where LayerNorm takes it."""
    u, s, _ = torch.linalg.svd(shortcut)
    assert ((s - 1).abs() < 1e-9).sum() >= len(s) - 1
    return u @ torch.diag(s.round()) @ u.T


@pytest.mark.parametrize("family", SLICEABLE)
def test_slicing_is_projecting_onto_the_principal_components(family, windows, in_float64):
    """The dense model whose hidden state is projected before every block, which is slow and obvious."""
    model = tiny_model(family)
    sliced = slicegpt(model, windows, removed=count(model) // 5, batch_size=2)
    k = kept(sliced)
    assert 4 < k < 30
    bases = {}
    project_hidden_states(model, bases, k)
    logits(model, windows)  # all calibration text in one batch: the bases are made on the way
    assert largest_difference(logits(sliced, windows[:2]), logits(model, windows[:2])) < 1e-9


def project_hidden_states(model, bases, k):
    """Projects the hidden state before every block onto the first k components of what first came by there."""

    def project(x, i):
        x = x - x.mean(-1, keepdim=True) if isinstance(norms(model)[i], nn.LayerNorm) else x
        if i not in bases:
            bases[i] = torch.linalg.svd(x.flatten(0, -2)).Vh[:k].T
        return x @ bases[i] @ bases[i].T

    for i, layer in enumerate(model.get_decoder().layers):
        entered = {}

        def enter(_, args, i=i, entered=entered):
            entered["h"] = project(args[0], 2 * i)
            return (entered["h"], *args[1:])

        def leave(_, args, output, i=i, entered=entered):
            # The layer adds this to what it was given, and gets the projection of the sum.
            return (project(entered["h"] + output[0], 2 * i + 1) - entered["h"], *output[1:])

        layer.register_forward_pre_hook(enter)
        layer.self_attn.register_forward_hook(leave)


def test_components_are_of_the_hidden_state_before_the_norm(in_float64):
    """One long hidden state among many short ones outweighs them, and a norm would make them all alike."""
    model = build("llama", num_hidden_layers=1, tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[1:9, 0] = 1.0
        model.model.embed_tokens.weight[9, 1] = 100.0
    windows = torch.arange(1, 10)[None]
    (first, _) = measure_bases(model, find_residual_model(model, windows), windows, 1, 1)
    expected = torch.zeros(32, 1, dtype=torch.float64)
    expected[1] = 1.0  # 1 · 100² against 8 · 1²; of normed states it would be 1 against 8
    torch.testing.assert_close(first.abs(), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_final_norm_and_head_see_all_features(model_type, tied, windows):
    model = build(model_type, tie_word_embeddings=tied)
    sliced = slice_to(model, windows, 12)
    assert kept(sliced) == 12
    assert torch.equal(sliced.lm_head.weight, model.lm_head.weight)
    assert torch.equal(norms(sliced)[-1].weight, norms(model)[-1].weight)
    with torch.no_grad():
        assert sliced.get_decoder()(windows).last_hidden_state.shape == (3, 24, 32)
    embedding = sliced.get_input_embeddings()
    if tied:  # what the embedding gives is cut, its table is still that of the head
        assert isinstance(embedding, SlicedEmbedding)
        assert embedding.weight is sliced.lm_head.weight
    else:
        assert embedding.weight.shape == (256, 12)
    with torch.no_grad():
        assert embedding(windows).shape == (3, 24, 12)


def test_a_tied_model_is_sliced_to_the_function_of_an_untied_one(windows, in_float64):
    """The authors' code unties the head, which costs parameters and changes nothing that is computed."""
    tied = build("llama", tie_word_embeddings=True)
    untied = build("llama", tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    small, large = (slice_to(model, windows, 12) for model in (tied, untied))
    assert largest_difference(logits(small, windows), logits(large, windows)) < 1e-9
    assert count(large) - count(small) == 256 * 12 + 256 * 32 - (256 * 32 + 32 * 12)


def test_a_model_that_lives_in_a_subspace_is_sliced_for_free(windows, in_float64):
    model = tiny_model("llama")
    basis = torch.linalg.qr(torch.randn(32, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        for table in (model.model.embed_tokens,):
            table.weight.copy_(table.weight @ basis @ basis.T)
        for layer in model.model.layers:
            for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
                output.weight.copy_(basis @ basis.T @ output.weight)
        for norm in norms(model):
            norm.weight.fill_(1.0)
    sliced = slice_to(model, windows, 12)
    assert largest_difference(logits(sliced, windows), logits(model, windows)) < 1e-9
    too_far = slice_to(model, windows, 11)
    assert largest_difference(logits(too_far, windows), logits(model, windows)) > 1e-3


@pytest.mark.parametrize("family", SLICEABLE)
def test_enough_parameters_go_and_no_dimension_too_many(family, windows):
    model = tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    for removed in (1, count(model) // 7, count(model) // 2):
        sliced = slicegpt(model, windows, removed)
        gone = count(model) - count(sliced)
        assert gone >= removed
        assert kept(slicegpt(model, windows, gone)) == kept(sliced)
        assert kept(slicegpt(model, windows, gone + 1)) == kept(sliced) - 1
        assert torch.isfinite(torch.tensor(ff.perplexity(sliced, windows)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(x._forward_pre_hooks or x._forward_hooks for x in model.modules())


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_and_the_shortcuts_are_counted(tied, windows):
    model = build("llama", tie_word_embeddings=tied)
    rotated = slicegpt(model, windows, removed=0)
    added = count(rotated) - count(model)
    assert added == 6 * 32 * 32 - 6 * 32 + (32 * 32 if tied else 0)
    assert (rotated.lm_head.weight is rotated.model.embed_tokens.weight) == tied
    assert largest_difference(logits(rotated, windows), logits(model, windows)) < 1e-5
    opt = build("opt")  # tied, with a bias of every layer and norm
    assert count(slicegpt(opt, windows, removed=0)) - count(opt) == 6 * 32 * 32 - 6 * 64 + 32 * 32


def test_opt_125m_has_as_many_parameters_as_its_authors_count():
    """Their own test (tests/test_experiments.py) expects 147,250,880 at a slicing of 20 %, 608 of 768 dimensions.

    They fold the bias of the final norm into the head, one number per token. Here that norm stays, with scale and bias.
    Their head and embedding are not tied.
    """
    config = AutoConfig.for_model(
        "opt", vocab_size=50272, hidden_size=768, ffn_dim=3072, word_embed_proj_dim=768, num_hidden_layers=12,
        num_attention_heads=12, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.detach().zero_()
    parts = find_residual_model(model, torch.ones(1, 4, dtype=torch.int64))
    assert ParameterCount.of(model, parts).at(608) == 147_250_880 - 50_272 + 2 * 768


@pytest.mark.parametrize("settings", [{"layer_norm_elementwise_affine": False}, {"enable_bias": False}])
def test_layer_norms_without_scale_and_layers_without_bias_fold(settings, windows):
    model = build("opt", **settings)
    rotated = slicegpt(model, windows, removed=0)
    assert largest_difference(logits(rotated, windows), logits(model, windows)) < 1e-9
    gone = count(model) - count(slicegpt(model, windows, removed=3000))
    assert 3000 <= gone < 3000 + 2 * 1500


@pytest.mark.parametrize("family", SLICEABLE)
def test_a_wrapped_and_ranked_model_slices_to_the_same_function(family, windows):
    model = tiny_model(family)
    expected = logits(slicegpt(model, windows, count(model) // 5), windows)
    prunable = PrunableModel(model)
    prunable.rank(wanda_scores(prunable, collect_statistics(prunable, windows)))
    sliced = slicegpt(prunable.model, windows, count(model) // 5)
    assert largest_difference(logits(sliced, windows), expected) < 1e-4


@pytest.mark.parametrize("family", SLICEABLE)
def test_a_sliced_model_generates_with_a_cache(family, windows):
    model = tiny_model(family)
    sliced = slicegpt(model, windows, count(model) // 5)
    prompt = windows[:1, :9]
    tokens = sliced.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    plain = sliced.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(tokens, plain)
    assert tokens.shape == (1, 15)


def test_components_descend():
    x = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 5, 2, 4, 3, 6]
    )
    basis = principal_components((x.T @ x), 4)
    energies = (x @ basis).square().sum(dim=0)
    torch.testing.assert_close(energies, torch.linalg.svdvals(x)[:4].square())
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))


def test_the_dtype_stays_and_the_log_tells_the_width(windows, caplog):
    model = tiny_model("llama-gqa").bfloat16()
    with caplog.at_level(logging.INFO):
        sliced = slicegpt(model, windows, 9000)
    assert {p.dtype for p in sliced.parameters()} == {torch.bfloat16}
    assert f"{kept(sliced)} of 32 dimensions kept" in caplog.text
    assert f"removes {count(model) - count(sliced)} of {count(model)} parameters (asked: 9000)" in caplog.text
    logits(sliced, windows)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False has none"),
        ("opt", {"word_embed_proj_dim": 16}, "embeddings of 16, 32, a head of 16"),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 16}, "Gemma2DecoderLayer has 4 norms"),
        ("gemma", {"num_key_value_heads": 2, "head_dim": 16}, "neither LayerNorm nor a division"),
        ("olmo2", {}, r"Olmo2DecoderLayer is not x \+ attention"),
        ("granite", {"residual_multiplier": 0.2}, r"GraniteDecoderLayer is not x \+ attention"),
    ],
)
def test_other_architectures_are_refused_by_what_they_are(model_type, changes, reason, windows):
    with pytest.raises(ValueError, match=f"cannot be sliced: .*{reason}"):
        slicegpt(build(model_type, **changes), windows, removed=100)


def test_what_cannot_be_removed_is_refused(windows):
    model = tiny_model("llama")
    for removed in (-1, count(model)):
        with pytest.raises(ValueError, match=f"can remove 0 to \\d+ parameters of this model, {removed} were"):
            slicegpt(model, windows, removed)
    for dimensions in (0, 33):
        with pytest.raises(ValueError, match=f"can keep 1 to 32 dimensions of this model, got {dimensions}"):
            slice_to(model, windows, dimensions)
    with pytest.raises(ValueError, match=r"n ≥ 1, got shape \(0, 8\)"):
        slicegpt(model, windows[:0, :8], 100)
