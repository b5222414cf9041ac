"""The process in which a notebook runs: a fork of one that has imported the slow libraries once.

Each notebook has a kernel of its own, as it would if the kernel were started afresh; what one does,
even its end, reaches no other. Starting one takes a fifth of the time, most of which was imports.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from traitlets.config import Config

import wanreport
from wanreport.local import NO_MEASURING

LOG = "kernel.log"
PRELOADED = [
    "ipykernel.kernelapp", "ipykernel.debugger", "IPython.core.completerlib",
    "tornado.platform.asyncio", "matplotlib.backends.backend_svg", "matplotlib.figure",
    "pydantic", "yaml",
]  # fmt: skip
"""None of our own modules: an error in one of them is for the notebook to show."""


@contextlib.contextmanager
def home(folder: Path) -> Iterator[Config]:
    """Surroundings for kernels that depend on nothing in the user's home.

    Kernels run this very Python, whatever kernelspecs are installed; they keep no history (its
    database locks up on network file systems); and they listen on sockets in `folder`, which only
    this user can reach, in place of TCP ports, which collide and which others could read.
    """
    short = len(str(folder)) < 70  # the path of a socket may have about 100 bytes
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    # What a kernel writes while it comes and goes is kept from the terminal.
    argv = ["/bin/sh", "-c", 'exec "$@" 2>>"$0"', str(folder / LOG), sys.executable, "-m"]
    argv += ["ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
    content: dict[str, Any] = {"argv": argv, "display_name": "Python 3", "language": "python"}
    if short:
        content["metadata"] = {"kernel_provisioner": {"provisioner_name": FORKED.name}}
        KernelProvisionerFactory.provisioners[FORKED.name] = FORKED
    (spec / "kernel.json").write_text(json.dumps(content))
    package = str(Path(wanreport.__file__).resolve().parents[1])
    own = {
        "JUPYTER_PATH": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder / "r"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "OPENBLAS_NUM_THREADS": "1",  # no threads where there is a fork to come
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": _matplotlib_home(folder),
        NO_MEASURING: "1",
    }
    config = Config()
    if short:
        config.KernelManager.transport = "ipc"
        config.KernelManager.ip = str(folder / "k")
    else:
        config.KernelManager.transport_encryption = "auto"
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield config
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def last_words(folder: Path) -> str:
    """What the kernel in `folder` wrote last, as a sentence; empty if it wrote nothing."""
    with contextlib.suppress(OSError):
        lines = (folder / LOG).read_text(errors="replace").strip().splitlines()
        if lines:
            return f" It last wrote: {lines[-1][:300]}"
    return ""


def _matplotlib_home(folder: Path) -> str:
    """A folder for matplotlib's font list, complete, and without anybody's own settings in it.

    A kernel that had to list the fonts first would say so on the page, once.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    home = Path(os.environ.get("MPLCONFIGDIR") or cache / "wanreport" / "matplotlib")
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not os.access(home, os.W_OK):
            raise PermissionError
    except OSError:
        home = folder / "matplotlib"
        home.mkdir()
    if not any(home.glob("fontlist*.json")):
        subprocess.run(
            [sys.executable, "-c", "import matplotlib.font_manager"],
            env={**os.environ, "MPLCONFIGDIR": str(home)}, capture_output=True, check=False,
        )  # fmt: skip
    return str(home)


class Forked(LocalProvisioner):
    """Starts a kernel as a fork; jupyter_client does the rest as for any other here."""

    process: Any

    async def launch_kernel(self, cmd: Sequence[str], **options: Any) -> Any:
        """Fork a kernel that is as `cmd` in `options`' cwd and env would be."""
        multiprocessing.set_forkserver_preload(PRELOADED)
        log, arguments = cmd[3], list(cmd[cmd.index("-f") :])
        where = str(options.get("cwd") or Path.cwd())
        self.process = _Process(target=_run, args=(arguments, options["env"], where, log))
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


FORKED = EntryPoint(
    "wanreport", f"{__name__}:{Forked.__name__}", KernelProvisionerFactory.GROUP_NAME
)


class _Process(ForkServerProcess):
    """A process of multiprocessing's with the words of one of subprocess's."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)


def _run(arguments: list[str], environment: Mapping[str, str], cwd: str, log: str) -> None:
    os.setsid()  # a signal to the kernel reaches what it has started, too, and Ctrl-C does not
    log_file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log_file, 2)
    os.close(log_file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    # Without a parent it would take itself for one that a person started, and greet.
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
