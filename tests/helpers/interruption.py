"""Interruption of a run at a given frame."""


def interrupt_at(frame: int):
    """Returns an ``on_frame`` callback that raises KeyboardInterrupt at its ``frame``-th call, as Ctrl-C may."""
    count = 0

    def on_frame():
        nonlocal count
        count += 1
        if count == frame:
            raise KeyboardInterrupt

    return on_frame
