"""A tiny pruned model is recovered: what is trained, what is kept, how it goes on, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import tiny_model

import ffprune_env as ff
from ffprune_env.export.smaller_model import smaller_model
from ffprune_env.recovery import session
from ffprune_env.recovery.distillation_loss import DistillationLoss
from ffprune_env.recovery.passages import passages_of
from ffprune_env.recovery.session import smaller_batch
from ffprune_env.recovery.stored_teacher import store_teacher
from ffprune_env.recovery.trained import trained_parameters, with_adapters

KEPT = [2, 10] * 3
#: Two steps of two windows, and one of the last window; one look in between and one at the end.
QUICK = ff.RecoverySettings(windows_per_step=2, held_out=1, looks=2, learning_rate=1e-3, precision="float32", seed=3)
TEXT = torch.randint(1, 256, (6, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dense():
    return tiny_model("llama-gqa").float()


@pytest.fixture(scope="module")
def pruned(dense):
    prunable = ff.PrunableModel(copy.deepcopy(dense))
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    return copy.deepcopy(smaller_model(prunable, KEPT))


def changed(model, before):
    pairs = zip(before.named_parameters(), model.named_parameters(), strict=True)
    return {name for (name, x), (_, y) in pairs if not torch.equal(x, y)}


def assert_same(model, other):
    assert {name: x.tolist() for name, x in model.state_dict().items()} == {
        name: x.tolist() for name, x in other.state_dict().items()
    }


@pytest.fixture(scope="module")
def whole(pruned, dense):
    """A recovery that nothing happened to, and its model."""
    model = copy.deepcopy(pruned)
    return ff.recover(model, dense, TEXT, QUICK), model


def test_it_comes_closer_to_the_dense_model_and_trains_no_embedding(whole, pruned):
    result, model = whole
    assert result.kept
    assert result.after.kl < result.before.kl
    assert (result.steps, result.tokens, result.stopped) == (3, 5 * 16, "all tokens were seen")
    assert changed(model, pruned) == {name for name, _ in pruned.named_parameters()} - {"model.embed_tokens.weight"}
    assert (model.config.use_cache, model.training) == (pruned.config.use_cache, False)
    assert all(x.requires_grad and x.grad is None for x in model.parameters())
    assert {type(x) for x in model.modules()} == {type(x) for x in pruned.modules()}


def test_a_tied_head_is_an_embedding_and_outputs_alone_are_few(dense, pruned):
    model = tiny_model("opt").float()  # its positions are embeddings, too
    names = trained_parameters(model, "all")
    tied = model.get_input_embeddings().weight
    assert any("layers" in name for name in names)
    assert not any(x is tied or "embed" in name for name, x in names.items())
    few = set(trained_parameters(pruned, "outputs"))
    assert few < set(trained_parameters(pruned, "all"))
    kinds = ("norm.weight", "layernorm.weight", "o_proj.weight", "o_proj.bias", "down_proj.weight", "down_proj.bias")
    assert few == {name for name, _ in pruned.named_parameters() if name.endswith(kinds)}


def test_adapters_are_merged_and_compute_what_they_did(dense, pruned):
    settings = dataclasses.replace(QUICK, lora=2, learning_rate=3e-2, tokens=64)
    model = copy.deepcopy(pruned)
    result = ff.recover(model, dense, TEXT, settings)
    assert result.kept
    assert result.trained < 5000
    assert {type(x) for x in model.modules()} == {type(x) for x in pruned.modules()}
    moved = changed(model, pruned)
    assert moved
    assert all(name.endswith("proj.weight") for name in moved)
    assert all(x.requires_grad for x in model.parameters())
    student = with_adapters(copy.deepcopy(pruned), settings)
    with torch.no_grad():
        for name, x in student.named_parameters():
            if "lora_" in name:
                x.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        apart = student(TEXT).logits
        torch.testing.assert_close(student.merge_and_unload()(TEXT).logits, apart, rtol=1e-4, atol=1e-5)
        assert (apart - pruned(TEXT).logits).abs().max() > 1e-2


@pytest.mark.parametrize("lora", [None, 2])
def test_an_interrupted_recovery_goes_on_as_if_nothing_had_happened(dense, pruned, tmp_path, monkeypatch, lora):
    settings = dataclasses.replace(QUICK, lora=lora, looks=3, tokens=5 * 16)
    expected = copy.deepcopy(pruned)
    told = ff.recover(expected, dense, TEXT, settings)
    model, losses, calls = copy.deepcopy(pruned), DistillationLoss.losses, []

    def stopping(self, batch, forward=None, look=False):
        calls.append(look)
        if not look and calls.count(False) == 4:  # in the second step, after the first checkpoint
            raise KeyboardInterrupt
        return losses(self, batch, forward, look)

    monkeypatch.setattr(DistillationLoss, "losses", stopping)
    with pytest.raises(KeyboardInterrupt):
        ff.recover(model, dense, TEXT, settings, folder=tmp_path / "work")
    monkeypatch.setattr(DistillationLoss, "losses", losses)
    assert_same(model, pruned)
    assert model.config.use_cache == pruned.config.use_cache
    other = dataclasses.replace(settings, learning_rate=1e-4)
    with pytest.raises(ValueError, match=r"holds a recovery that was interrupted and began with another settings"):
        ff.recover(copy.deepcopy(pruned), dense, TEXT, other, folder=tmp_path / "work")
    result = ff.recover(model, dense, TEXT, settings, folder=tmp_path / "work")
    assert (result.tokens, result.steps, result.before) == (told.tokens, told.steps, told.before)
    assert result.after == told.after
    assert_same(model, expected)
    assert not (tmp_path / "work" / "checkpoints").exists()


@pytest.mark.parametrize("lora", [None, 2])
def test_a_recovery_that_has_ended_is_not_trained_again(dense, pruned, tmp_path, monkeypatch, lora):
    """Until its folder is removed: whoever could not write the model gives the same command once more."""
    settings = dataclasses.replace(QUICK, lora=lora, learning_rate=1e-2, tokens=80, minutes=60)
    expected, model = copy.deepcopy(pruned), copy.deepcopy(pruned)
    told = ff.recover(expected, dense, TEXT, settings, folder=tmp_path)
    assert told.kept
    for other, what in (
        (dataclasses.replace(settings, learning_rate=1e-4), "another settings"),
        (dataclasses.replace(settings, minutes=50), "another number of minutes"),
    ):
        with pytest.raises(ValueError, match=f"holds a recovery that has ended and began with {what}: go on with"):
            ff.recover(copy.deepcopy(pruned), dense, TEXT, other, folder=tmp_path)
    monkeypatch.setattr(session.Session, "_train", lambda *_: pytest.fail("it was trained again"))
    assert ff.recover(model, dense, TEXT, settings, folder=tmp_path) == told
    assert_same(model, expected)


def test_one_that_came_to_nothing_has_ended_too(dense, pruned, tmp_path, monkeypatch):
    model, settings = copy.deepcopy(pruned), dataclasses.replace(QUICK, learning_rate=0.5)
    told = ff.recover(model, dense, TEXT, settings, folder=tmp_path)
    assert not told.kept
    monkeypatch.setattr(session.Session, "_train", lambda *_: pytest.fail("it was trained again"))
    assert ff.recover(model, dense, TEXT, settings, folder=tmp_path) == told
    assert_same(model, pruned)
    (tmp_path / "begun.json").write_text("{")  # cut off: nobody knows any more what that was of
    monkeypatch.undo()
    again = ff.recover(model, dense, TEXT, QUICK, folder=tmp_path)
    assert (again.kept, again.stopped) == (True, "all tokens were seen")


def test_a_loss_that_is_no_number_leaves_the_model_from_before(dense, pruned, monkeypatch, caplog):
    model, losses, calls = copy.deepcopy(pruned), DistillationLoss.losses, []

    def breaking(self, batch, forward=None, look=False):
        found = losses(self, batch, forward, look)
        calls.append(look)
        return dataclasses.replace(found, loss=found.loss * torch.nan) if calls.count(False) > 2 else found

    monkeypatch.setattr(DistillationLoss, "losses", breaking)
    result = ff.recover(model, dense, TEXT, QUICK)
    assert (result.kept, result.stopped) == (False, "the loss became nan at step 2")
    assert result.after == result.before
    assert "the model from before is kept" in caplog.text
    assert_same(model, pruned)


def test_a_recovery_that_makes_it_worse_leaves_the_model_from_before_and_ends_early(dense, pruned):
    model = copy.deepcopy(pruned).to(torch.bfloat16)
    before = copy.deepcopy(model)
    settings = dataclasses.replace(QUICK, learning_rate=0.5, looks=6, tokens=6 * 80, patience=1, seed=1)
    result = ff.recover(model, dense, TEXT, settings)
    assert not result.kept
    assert result.steps < 18
    assert result.stopped.startswith("the held-out loss was no better in 1 looks; no held-out loss was below ")
    assert model.dtype == torch.bfloat16
    assert_same(model, before)


def test_looks_without_a_better_loss_do_not_end_a_recovery_by_default(dense, pruned):
    """The loss falls most at the end, where the rate does."""
    settings = dataclasses.replace(QUICK, learning_rate=0.5, looks=6, tokens=6 * 80, seed=1)
    result = ff.recover(copy.deepcopy(pruned), dense, TEXT, settings)
    assert result.stopped.startswith("all tokens were seen")


def test_where_memory_runs_out_the_batch_is_halved_and_the_steps_are_the_same(
    whole, dense, pruned, monkeypatch, caplog
):
    losses, model = DistillationLoss.losses, copy.deepcopy(pruned)

    def narrow(self, batch, forward=None, look=False):
        if len(batch["index"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses(self, batch, forward, look)

    monkeypatch.setattr(DistillationLoss, "losses", narrow)
    monkeypatch.setattr(session, "first_batch", lambda on_cpu, per_step: per_step)
    result = ff.recover(model, dense, TEXT, QUICK)
    assert "out of memory with 2 windows at once: going on with 1" in caplog.text
    assert (result.steps, result.after) == (whole[0].steps, whole[0].after)
    assert_same(model, whole[1])


def test_memory_that_is_too_small_for_one_window_is_one_line_and_the_model_from_before(dense, pruned, monkeypatch):
    losses, model = DistillationLoss.losses, copy.deepcopy(pruned)

    def nothing(self, batch, forward=None, look=False):
        if not look:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses(self, batch, forward, look)

    monkeypatch.setattr(DistillationLoss, "losses", nothing)
    with pytest.raises(RuntimeError, match=r"^memory runs out with a single window: give shorter windows"):
        ff.recover(model, dense, TEXT, QUICK)
    assert_same(model, pruned)


def test_a_smaller_batch_divides_the_windows_of_a_step():
    assert [smaller_batch(8, 8), smaller_batch(6, 6), smaller_batch(3, 6), smaller_batch(5, 5)] == [4, 3, 1, 1]


def test_time_ends_it(dense, pruned):
    settings = dataclasses.replace(QUICK, minutes=1e-6)
    result = ff.recover(copy.deepcopy(pruned), dense, TEXT, settings)
    assert (result.steps, result.stopped.partition(";")[0]) == (1, "the time was over")


def test_a_teacher_of_all_probabilities_on_disk_teaches_what_the_model_does(whole, dense, pruned, tmp_path):
    model = copy.deepcopy(pruned)
    result = ff.recover(model, dense, TEXT, dataclasses.replace(QUICK, teacher_topk=256))
    # But for openings, which are trained where the dense model can be asked.
    assert result.after.kl == pytest.approx(whole[0].after.kl, rel=1e-2)
    assert result.after.kl != whole[0].after.kl
    passages = passages_of(TEXT)
    stored = store_teacher(dense, passages, 4, tmp_path / "teacher")
    times = [file.stat().st_mtime_ns for file in sorted((tmp_path / "teacher").iterdir())]
    assert stored.k == 4
    store_teacher(dense, passages, 4, tmp_path / "teacher")
    assert times == [file.stat().st_mtime_ns for file in sorted((tmp_path / "teacher").iterdir())]
    with pytest.raises(ValueError, match="of other text: remove it"):
        type(stored)(tmp_path / "teacher", passages[:-1])


def test_a_recovered_model_can_be_written_and_pruned_again(whole, tmp_path):
    _, model = whole
    prunable = ff.PrunableModel(copy.deepcopy(model))
    prunable.rank([np.arange(unit.n_groups) for unit in prunable.units])
    ff.save_pruned(prunable, [1, 7] * 3, tmp_path / "again")
    assert np.isfinite(ff.perplexity(ff.load_pruned(tmp_path / "again", device="cpu"), TEXT))


def test_what_cannot_be_is_refused_in_one_line(dense, pruned):
    wide = tiny_model("llama")
    wide.resize_token_embeddings(300)
    short = dataclasses.replace(QUICK, hidden=1.0)
    shallow = tiny_model("llama").float()
    del shallow.model.layers[2]
    for message, call in {
        "the dense model predicts 300 tokens, the pruned one 256": lambda: ff.recover(pruned, wide, TEXT),
        "the text to recover on has 1 windows": lambda: ff.recover(pruned, dense, TEXT[:1]),
        "the model takes at most 128: cut them shorter": lambda: ff.recover(pruned, dense, TEXT.repeat(1, 9)),
        "the text has token 300, the model knows 0 to 255": lambda: ff.recover(pruned, dense, TEXT + 300 - TEXT),
        "hidden states cannot be compared": lambda: ff.recover(pruned, shallow, TEXT, short),
        "minutes of a recovery must be more than 0, got 0": lambda: ff.RecoverySettings(minutes=0),
        "cross_entropy of a recovery must be between 0 and 1, got 2": lambda: ff.RecoverySettings(cross_entropy=2),
        "give either a rank, or which weights": lambda: ff.RecoverySettings(lora=2, trained="outputs"),
        "hidden states are not kept on disk": lambda: ff.RecoverySettings(teacher_topk=2, hidden=1),
    }.items():
        with pytest.raises(ValueError, match=message) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_a_model_with_no_way_from_hidden_states_to_logits_is_refused(dense, pruned, monkeypatch):
    from ffprune_env.lm.head import Head
    from ffprune_env.recovery import teacher

    monkeypatch.setattr(teacher, "head_of", lambda model: Head("whole", 256, None))
    with pytest.raises(ValueError, match="has no hidden states that give its logits: it cannot be used in a recovery"):
        ff.recover(pruned, dense, TEXT)
