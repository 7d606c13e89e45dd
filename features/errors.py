"""`BackboneError` and `FeatureSetError`; their messages are one line that tells the user what to do."""

from skipreel.pipeline.errors import InputError


class BackboneError(InputError):
    """A backbone does not exist, cannot be loaded, or is not the one that made the features."""


class FeatureSetError(InputError):
    """A feature set is missing, is damaged, has another spec, or does not hold a requested video."""
