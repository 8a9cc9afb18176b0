"""Operating-system processes: members of a session, idle workers, the owner of a port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil


def session_members(leader: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The running processes of the session that `leader` started, also after it has ended."""
    leader.poll()  # reaps it: a zombie does not count
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            is_running = process.status() != psutil.STATUS_ZOMBIE
            if is_running and os.getsid(process.pid) == leader.pid:
                members.append(process)
    return members


def is_java(process: psutil.Process) -> bool:
    """Whether a process is TorchServe's front end."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() == "java"
    return False


def send_signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those of the processes that still run."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_temporary_folder(folder: Path) -> bool:
    """Whether a running process has `folder` as its TMPDIR.

    A TorchServe whose `audiocnn serve` was killed keeps running, but does not hold the folder's lock.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                return True
    return False


def port_owner(port: int) -> str:
    """` by process PID (NAME)` for the process that listens on a port; empty if it cannot be determined."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            is_listener = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if is_listener and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def local_workers(pids: Sequence[int]) -> list[psutil.Process] | None:
    """TorchServe's worker processes; None if any of them does not run on this machine."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if "model_service_worker" not in " ".join(process.cmdline()):
                return None
        except psutil.Error:
            return None
        found.append(process)
    return found


def are_idle(processes: Sequence[psutil.Process], seconds: float) -> bool:
    """Whether none of the processes runs, waits for a CPU or uses CPU time for `seconds`."""
    before = [_cpu_seconds(process) for process in processes]
    time.sleep(seconds)
    return None not in before and before == [_cpu_seconds(process) for process in processes]


def _cpu_seconds(process: psutil.Process) -> float | None:
    """CPU time used so far; None if the process is runnable or has ended."""
    with contextlib.suppress(psutil.Error):
        if process.status() == psutil.STATUS_SLEEPING:
            times = process.cpu_times()
            return float(times.user + times.system)
    return None
