"""Whatever flags or config a user writes: a run, or one clear line; never a traceback, never half a run."""

from __future__ import annotations

import dataclasses
import io
from contextlib import redirect_stderr, redirect_stdout

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import run_main
from tiny_runs import settings as flags_of

# Values that would only make a run long are left out, and those that name other places.
NUMBERS = st.one_of(
    st.integers(-3, 9), st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.999, 1.0, 1.5, -0.1, 1e-9, 1e300, -1e300])
)
ODD = st.sampled_from(
    [
        "nan",
        "inf",
        "-inf",
        "None",
        "",
        " ",
        "0x10",
        "1e-3",
        "1_0",
        "ten",
        "σ",
        "-",
        "--",
        "[1]",
        "{}",
        "True",
        "\x1b[31m[red]",
    ]
)
WORDS = st.sampled_from(
    ["wanda", "surgeon", "greedy", "waterfill", "fisher", "none", "ppl", "kl", "cpu", "cuda", "float32", "bfloat16"]
)  # fmt: skip
VALUES = st.one_of(st.integers(1, 4), st.integers(1, 4), NUMBERS, ODD, WORDS, st.text(max_size=6))
LEFT_ALONE = {"run", "model", "text", "test_text", "trust_remote_code"}


def fields(ppo_script):
    return sorted({field.name for field in dataclasses.fields(ppo_script.Args)} - LEFT_ALONE)


def outcome(ppo_script, arguments):
    """Exit code and what was said on stderr."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        try:
            code = run_main(ppo_script, arguments)
        except SystemExit as stop:  # how a parser of flags ends
            code = stop.code
    return code, said.getvalue()


def assert_civil(run, code, said):
    assert code in (0, 1, 2), code
    assert "Traceback" not in said
    if code == 0:
        assert (run / "best.json").is_file()
    if code == 1:  # the search itself went wrong: known to happen, and nothing is lost
        assert len(said.splitlines()) == 1
        assert any(reason in said for reason in ("model could not be written", "not finite")), said
    if code == 2:
        assert said.strip()
        assert not run.exists() or not any(not file.name.startswith(".") for file in run.iterdir()), list(run.iterdir())


@pytest.fixture
def check(ppo_script, tiny_folder, text_file, tmp_path):
    count = iter(range(10**6))

    def run_with(more):
        run = tmp_path / f"run{next(count)}"
        base = flags_of(tiny_folder, text_file, run, timesteps=4, finalists=1)
        return run, *outcome(ppo_script, [*base, *more])

    return run_with


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flags(ppo_script, check, data):
    names = data.draw(st.lists(st.sampled_from(fields(ppo_script)), min_size=1, max_size=3, unique=True))
    more = []
    for name in names:
        form = data.draw(st.sampled_from(["value", "value", "value", "bare", "no"]))
        flag = name.replace("_", "-")
        more += {"bare": [f"--{flag}"], "no": [f"--no-{flag}"]}.get(form) or [f"--{flag}", str(data.draw(VALUES))]
    assert_civil(*check(more))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_configs(ppo_script, check, tmp_path, data):
    plain = st.one_of(
        VALUES, st.none(), st.booleans(), st.lists(NUMBERS, max_size=3), st.dictionaries(WORDS, NUMBERS, max_size=2)
    )
    keys = st.one_of(st.sampled_from(fields(ppo_script)), st.text(max_size=5), st.integers())
    content = data.draw(
        st.one_of(
            st.dictionaries(keys, plain, max_size=4).map(lambda x: yaml.safe_dump(x).encode()),
            st.binary(max_size=40),
            st.sampled_from([b"", b"- 1", b"a: &a [*a]", b"!!python/object:os.system x", b"seed: 1\nseed: 2", b"\xff"]),
        )
    )
    config = tmp_path / "config.yaml"
    config.write_bytes(content)
    assert_civil(*check(["--config", str(config)]))
