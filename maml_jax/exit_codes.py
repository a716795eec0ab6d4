"""The exit codes of `maml-jax` other than 0; docs/reliability.md says what to do after each."""

import signal

ERROR = 1
"""An error that the message explains."""

WRONG_USAGE = 2
"""Words that no command understands."""

STOPPED = 75
"""After SIGTERM, which means "resume me"."""

OUT_OF_MEMORY = 76
"""Memory ran out; the checkpoints are as they were."""

LOST_PROCESS = 77
"""Another process of the run is gone: start all again, to resume."""

INTERRUPTED = 130
"""After Ctrl-C."""

AFTER_SIGNAL = {signal.SIGTERM: STOPPED, signal.SIGINT: INTERRUPTED}
"""What a process that was stopped by a signal should exit with."""
