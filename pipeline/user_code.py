"""``module:function``: how a user names code of his own, for a decoder or a backbone."""

from importlib import import_module
from typing import Any


def is_function_name(name: str) -> bool:
    """Whether a name has the form ``module:function``, so that importing it would run code."""
    module, _, function = name.partition(":")
    return all(part.isidentifier() for part in [*module.split("."), function])


def import_function(name: str) -> Any:
    """The function (or whatever else it is) called ``module:function``.

    Raises:
        ImportError, AttributeError: when there is no such module, or nothing of that name in it.
    """
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)
