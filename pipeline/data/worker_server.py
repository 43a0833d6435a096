"""Imported first by the process that loader processes are forked from: makes it outlive signals.

A signal to the whole process group (a scheduler's, a launcher's) is for the training process to
answer. Were the server to die of it, all its loader processes would be lost in mid-step. It ends by
itself once the training process and the loaders are gone.
"""

import signal

from pipeline.runtime.preemption import STOP_SIGNALS

for number in STOP_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
