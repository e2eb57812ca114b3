"""Flags of a recovery and its settings: one set of bounds, told in the words of who asked."""

from __future__ import annotations

import dataclasses

import pytest

import ffprune_env as ff
from ffprune_env.cli.recovery_flags import RecoveryFlags


def test_without_flags_the_settings_are_the_defaults():
    assert RecoveryFlags().recovery_settings() == ff.RecoverySettings()


def test_every_flag_reaches_its_setting():
    """But the text, which is no setting."""
    given = {
        "recover_minutes": 3.5, "recover_tokens": 7, "lora": 2, "recover_rate": 0.5, "recover_cross_entropy": 0.25,
        "recover_hidden": 0.75, "recover_batch": 3, "recover_held_out": 6, "recover_patience": 9, "recover_seed": 11,
        "save_memory": True,
    }  # fmt: skip
    found = dataclasses.asdict(RecoveryFlags(**given).recovery_settings())
    assert set(given.values()) <= set(found.values())
    assert RecoveryFlags(recover_weights="outputs", teacher_topk=5).recovery_settings() == ff.RecoverySettings(
        trained="outputs", teacher_topk=5
    )
    names = {field.name for field in dataclasses.fields(RecoveryFlags)}
    assert names - set(given) == {"recover_weights", "teacher_topk", "recovery_text"}


@pytest.mark.parametrize(
    ("flag", "field", "value", "says"),
    [
        ("recover_tokens", "tokens", 0, "must be at least 1, got 0"),
        ("recover_minutes", "minutes", 0.0, "must be more than 0, got 0.0"),
        ("recover_minutes", "minutes", float("nan"), "must be more than 0, got nan"),
        ("lora", "lora", 0, "must be at least 1, got 0"),
        ("recover_rate", "learning_rate", -1.0, "must be more than 0, got -1.0"),
        ("recover_cross_entropy", "cross_entropy", 1.5, "must be between 0 and 1, got 1.5"),
        ("recover_hidden", "hidden", -0.5, "must be at least 0, got -0.5"),
        ("recover_batch", "windows_per_step", 0, "must be at least 1, got 0"),
        ("recover_held_out", "held_out", 0, "must be at least 1, got 0"),
        ("recover_patience", "patience", -1, "must be at least 0, got -1"),
        ("teacher_topk", "teacher_topk", 0, "must be at least 1, got 0"),
    ],
)
def test_a_number_out_of_its_bounds_is_refused_by_the_name_that_it_was_given_by(flag, field, value, says):
    with pytest.raises(ValueError, match=f"^--{flag.replace('_', '-')} {says}$"):
        RecoveryFlags(**{flag: value}).recovery_settings()
    with pytest.raises(ValueError, match=f"^{field} of a recovery {says}$"):
        ff.RecoverySettings(**{field: value})
