"""What a process has had of the machine: whatever else runs there does not count."""

import psutil


def processor_s(pid: int) -> float:
    """Seconds of a processor, in user space and in the kernel."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
