"""Stop a script on Ctrl-C and SIGTERM with KeyboardInterrupt, even if Python loses the exception."""

import signal

_stops: list[int] = []  # signals received since the script began


def listen():
    """Convert both signals to KeyboardInterrupt from now on, unless Ctrl-C is ignored, as under nohup."""
    _stops.clear()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def stop_if_asked():
    """Raise KeyboardInterrupt if it was raised earlier and lost; called where it is safe to stop.

    Python discards exceptions in destructors and callbacks, and some libraries discard those raised while they load.
    """
    if _stops:
        raise KeyboardInterrupt


def _stop(number, _frame):
    _stops.append(number)
    raise KeyboardInterrupt
