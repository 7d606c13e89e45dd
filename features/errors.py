"""What can be wrong with a backbone or a feature set, in one line a user can act on."""

from skipreel.pipeline.errors import InputError


class BackboneError(InputError):
    """A backbone that does not exist, cannot be loaded, or is not the one the features were made with."""


class FeatureSetError(InputError):
    """A feature set that is missing, damaged, of another recipe, or without a video that was asked for."""
