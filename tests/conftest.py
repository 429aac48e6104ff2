"""What every test needs of its process."""

import signal

# A shell starts what it runs in the background with SIGINT ignored, and programs started here would inherit
# that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
