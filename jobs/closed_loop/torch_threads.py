"""How many threads torch uses for the work of one thread."""

import threading

import torch

_LOCK = threading.Lock()


def use_one_thread() -> None:
    """Make torch use one thread for this thread's work, and leave other threads as they are.

    Call it before this thread uses torch. `torch.set_num_threads` sets two numbers: that of the calling thread, and
    that of every thread that uses torch for the first time later. A thread that ends at once sets the second one back.
    """
    with _LOCK:  # else the next worker would read the number set here, and set that back
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        restorer = threading.Thread(target=torch.set_num_threads, args=(before,))
        restorer.start()
        restorer.join()
