"What every test may count on."
import signal

# A shell that starts the tests in the background has Ctrl-C ignored, in them and in all they start; some of them send one.
signal.signal(signal.SIGINT, signal.default_int_handler)
