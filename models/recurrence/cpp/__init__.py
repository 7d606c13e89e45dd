"""The recurrence and its backward in C++, on the CPU: built on first use, called with ctypes (skip_rnn.cpp)."""

from skipreel.models.recurrence.cpp.passes import backward, forward, unsupported_reason

__all__ = ["backward", "forward", "unsupported_reason"]
