"""Errors that a user can cause; each message is one line: what was given, what is allowed, what to do."""


class InputError(Exception):
    """Some input cannot be used; the command line prints the message without a traceback."""


class ManifestError(InputError):
    """An annotation file, a video folder or a manifest cannot be used as a whole."""


class VideoError(InputError):
    """A video cannot be opened or one of its frames cannot be decoded."""


class StorageError(InputError):
    """A file or folder cannot be read or written."""
