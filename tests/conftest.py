"""What every test needs of its process."""

import signal

# What a shell starts in the background ignores SIGINT, and so would every program started from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
