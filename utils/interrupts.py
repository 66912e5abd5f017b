"""Ctrl-C and SIGTERM stop a script as KeyboardInterrupt, even where Python loses the exception."""

import signal

_stops: list[int] = []  # what arrived since the script began


def listen():
    """Turn both signals into KeyboardInterrupt from now on, unless Ctrl-C is ignored, as behind nohup."""
    _stops.clear()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def stop_if_asked():
    """Raise KeyboardInterrupt if it was raised before and got lost; for places where it is safe to stop.

    Python drops what is raised in a destructor or a callback, and some libraries what is raised while they load.
    """
    if _stops:
        raise KeyboardInterrupt


def _stop(number, _frame):
    _stops.append(number)
    raise KeyboardInterrupt
