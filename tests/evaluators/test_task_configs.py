"""Any multiple-choice task in lm-eval's format can be rewarded: a file says how it is worded and where its data are."""

from __future__ import annotations

import json

import pytest
import yaml

from ffprune_env.evaluators.objectives.build import read_tasks, require_reward
from ffprune_env.evaluators.objectives.reward import parse_reward
from ffprune_env.evaluators.zero_shot_tasks import config_file

CONFIG = {
    "task": "colours",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{what}}\nA:",
    "doc_to_choice": ["red", "green", "blue"],
    "doc_to_target": "{{is}}",
}


@pytest.fixture
def colours(tmp_path):
    """Writes a task config with changes, and its two questions."""
    data = tmp_path / "colours.json"
    data.write_text("\n".join(json.dumps(row) for row in ({"what": "grass", "is": 1}, {"what": "sky", "is": 2})))

    def write(**changes):
        cache = {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")}
        file = tmp_path / "colours.yaml"
        file.write_text(yaml.safe_dump(CONFIG | {"dataset_kwargs": cache} | changes))
        return file

    return write


def only_term(reward):
    (term,) = parse_reward(reward).terms
    return term


def test_questions_are_worded_as_the_file_says(colours):
    file = colours()
    require_reward(parse_reward(f"tasks:{file}"))
    ((name, questions),) = read_tasks(only_term(f"tasks:{file}"), None).items()
    assert name == "colours"
    assert [question.answer for question in questions] == [1, 2]
    assert questions[0].lines == tuple(("Q: grass\nA:", f" {colour}") for colour in CONFIG["doc_to_choice"])


def test_it_goes_together_with_tasks_of_a_folder(colours, shared_data):
    term = only_term(f"tasks:piqa,{colours()}")
    assert list(read_tasks(term, shared_data / "zero_shot")) == ["piqa", "colours"]


def test_what_a_task_says_before_every_question_is_read(colours):
    file = colours(description="Name a colour.\n")
    (questions,) = read_tasks(only_term(f"tasks:{file}"), None).values()
    assert questions[1].lines[0] == ("Name a colour.\nQ: sky\nA:", " red")


def test_examples_before_questions_are_refused(colours):
    with pytest.raises(ValueError, match="task colours shows 2 examples before a question"):
        read_tasks(only_term(f"tasks:{colours(num_fewshot=2)}"), None)


def test_two_tasks_of_one_name_are_refused(colours, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(colours().read_text())
    with pytest.raises(ValueError, match="are called colours: leave one out, or rename it"):
        read_tasks(only_term(f"tasks:{colours()},{other}"), None)


def test_lm_evals_own_configs_are_found_without_a_path():
    assert config_file("commonsense_qa/default.yaml").is_file()


def test_a_task_without_choices_is_refused(colours):
    file = colours(output_type="generate_until")
    with pytest.raises(ValueError, match="task colours has no choices"):
        read_tasks(only_term(f"tasks:{file}"), None)


def test_what_is_no_config_is_refused_in_a_line(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text("task: [")
    with pytest.raises(ValueError, match=r"t\.yaml cannot be loaded as a task of lm-eval: [^\n]+$"):
        read_tasks(only_term(f"tasks:{file}"), None)


def test_a_file_that_is_not_there_is_refused_before_a_model_is_loaded():
    with pytest.raises(OSError, match=r"there is no task config mine\.yaml, neither here nor in "):
        require_reward(parse_reward("tasks:mine.yaml"))
