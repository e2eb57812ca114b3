"""Results are whole wherever they are printed."""

from __future__ import annotations

import pytest
from rich.table import Table

from ffprune_env.cli.consoles import wide_console


def printed(capsys):
    table = Table()
    for column in ("policy", "removed", "of model", "params", "search", "test", "against"):
        table.add_column(column)
    table.add_row("searched, calibrated", "20.35%", "8.13%", "134.5 M", "268.53", "259.80", "+0.2%")
    wide_console().print(table)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [None, "1", "20", "79", "wide", "200"])
@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_no_width_loses_a_figure(columns, term, monkeypatch, capsys):
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert all(word in printed(capsys) for word in ("20.35%", "8.13%", "134.5 M", "268.53", "259.80", "+0.2%"))


def test_a_log_file_is_wider_than_a_narrow_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert wide_console().width == 120
    monkeypatch.setenv("COLUMNS", "90")
    assert wide_console().width == 90
