"""What a user can cause: each message is one line that says what was given, what is allowed and what to do."""


class InputError(Exception):
    """Something given from outside cannot be used; the command line prints it without a traceback."""


class ManifestError(InputError):
    """An annotation file, a video folder or a manifest as a whole cannot be used."""


class VideoError(InputError):
    """A video cannot be opened or one of its frames cannot be decoded."""


class StorageError(InputError):
    """A file or folder cannot be read or written."""
