"""Names of the form ``module:function``, by which users give their own decoders and backbones."""

from importlib import import_module
from typing import Any


def is_function_name(name: str) -> bool:
    """Whether a name has the form ``module:function``; to import it would run code."""
    module, _, function = name.partition(":")
    return all(part.isidentifier() for part in [*module.split("."), function])


def import_function(name: str) -> Any:
    """Import the object called ``module:function``.

    Raises:
        ImportError: if there is no such module.
        AttributeError: if the module does not have that name.
    """
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)
