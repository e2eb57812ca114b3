"""A function of the user's as an objective: found by name, called, and not believed blindly."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import numbers
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ffprune_env.evaluators.objectives.shares import HELD_OUT, Place
from ffprune_env.lm.identity import weights_digest
from ffprune_env.lm.probing import calm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What exp can still be taken of with digits to spare, and what a value network learns within a search.
_MOST = 100.0


class RewardFunctionError(ValueError):
    """A function of the user's did what it must not."""


def load_function(name: str) -> Callable[..., Any]:
    """A function by the name of its module and its own.

    Args:
        name: ``module:function``; the module is looked for in the working directory, then where Python looks.

    Raises:
        ValueError: there is no such module or function, or the module cannot be imported.
    """
    module_name, _, function_name = name.partition(":")
    with _working_directory():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise ValueError(
                    f"--reward {name}: {module_name} needs {error.name}, which is not installed"
                ) from error
            raise ValueError(
                f"--reward {name}: there is no module {module_name} in {os.getcwd()} or installed"
            ) from error
        except Exception as error:
            raise ValueError(f"--reward {name}: {module_name} cannot be imported: {_told(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        there = [
            x for x, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module_name
        ]
        raise ValueError(
            f"--reward {name}: {module_name} has no function {function_name}, it has {', '.join(there) or 'none'}"
        )
    return cast("Callable[..., Any]", function)


def digest_of_function(function: Callable[..., Any]) -> str:
    """A digest of the source of a function's module, or of what is known of it; it may have been edited."""
    module = inspect.getmodule(function)
    try:
        source = inspect.getsource(module if module is not None and module.__name__ != "__main__" else function)
    except (OSError, TypeError):  # typed by hand, or an object with state
        source = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
    return hashlib.sha256(source.encode()).hexdigest()[:32]


@dataclass(eq=False)
class FunctionValue:
    """``module:function``: minus what the function says, the higher the better.

    Attributes:
        name: for messages.
        function: of model and tokenizer to a number; with a parameter ``held_out``, it is told whether what it says is
            reported.
        tokenizer: the model's.
    """

    name: str
    function: Callable[..., Any]
    tokenizer: PreTrainedTokenizerBase
    pool: None = None

    def prepare(self, model: PreTrainedModel, place: Place) -> None:
        """Nothing."""

    def measured(self, model: PreTrainedModel, place: Place) -> tuple[float, dict[str, float]]:
        """Minus the value.

        Raises:
            RewardFunctionError: the function raised, said no number or one out of range, or changed the model.
        """
        told = {"held_out": place[0] == HELD_OUT} if self._asks_which else {}
        before = weights_digest(model)
        with calm(model), _drawing_apart():
            try:
                value = self.function(model, self.tokenizer, **told)
            except Exception as error:
                raise RewardFunctionError(f"the reward {self.name} raised {_told(error)}") from error
        if weights_digest(model) != before:
            raise RewardFunctionError(
                f"the reward {self.name} changed parameters of the model: it may look at them and no more"
            )
        number = self._number(value)
        return -number, {"value": number}

    @property
    def _asks_which(self) -> bool:
        try:
            return "held_out" in inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            return False

    def _number(self, value: Any) -> float:
        item = getattr(value, "item", None)
        if callable(item) and getattr(value, "ndim", 1) == 0:  # of NumPy or torch
            value = item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise RewardFunctionError(f"the reward {self.name} returned {value!r:.60}: a number is needed")
        number = float(value)
        if not math.isfinite(number) or abs(number) > _MOST:
            raise RewardFunctionError(
                f"the reward {self.name} returned {number}: numbers from {-_MOST:g} to {_MOST:g} are allowed, the "
                f"higher the better, and a low one for a model that is broken"
            )
        return number


@contextmanager
def _working_directory() -> Iterator[None]:
    """Lets modules be found where the user is, whichever script runs."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


@contextmanager
def _drawing_apart() -> Iterator[None]:
    """Inside, generators may be drawn from and seeded; afterwards those of Python and NumPy are as if nobody had."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
