"What every test may count on."
import signal

# A shell that starts the tests in the background has them ignore Ctrl-C, and all they start; some tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)
