"""Tests run side by side: threads of one process that wait for cores which another has would slow both many times over."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported, and by the processes that tests start
