"""How many threads of its own torch uses, thread by thread."""

import threading

import torch

_LOCK = threading.Lock()


def use_one_thread() -> None:
    """Let torch compute with one thread in this thread, which must not have used torch yet; other threads keep theirs.

    `torch.set_num_threads` sets two numbers: that of the calling thread, and the one that threads get which use torch
    for the first time later. A thread that ends at once sets the second one back.
    """
    with _LOCK:  # else the next worker takes the number set here for the one to set back
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        restorer = threading.Thread(target=torch.set_num_threads, args=(before,))
        restorer.start()
        restorer.join()
