"""The parent's side: starts a contestant, asks it, and hears when it cannot go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from contestants.table import Row

__all__ = ["Process"]

BENCHMARKS = Path(__file__).resolve().parents[1]


class Process:
    """A contestant's process; `problem` says why it has ended, and is empty while it runs."""

    def __init__(self, row: Row, folder: Path, threads: int) -> None:
        self.row = row
        self.problem = ""
        self._pipe: subprocess.Popen[str] | None = None
        command = self._command(folder)
        if self.problem:
            return
        (folder / "log").mkdir(exist_ok=True)
        self._log = (folder / "log" / f"{row.name.replace('/', '_')}.txt").open("w")
        number = str(threads)
        limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {
            **os.environ,
            **dict.fromkeys(limits, number),
            "JULIA_NUM_THREADS": number,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(BENCHMARKS),
        }
        self._pipe = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def wait(self) -> None:
        """Wait until the contestant is ready, or has said why it will not be."""
        if self._pipe is not None:
            self._hear("ready")

    def _command(self, folder: Path) -> list[str]:
        if not self.row.worker.endswith(".jl"):
            settings = json.dumps(self.row.settings)
            module = "contestants.worker"
            return [sys.executable, "-m", module, self.row.worker, settings, str(folder)]
        julia, project = shutil.which("julia"), os.environ.get("PYDEQ_BENCH_JULIA_PROJECT")
        julia = os.environ.get("PYTHON_JULIAPKG_EXE", julia)
        if not julia or not project:
            self.problem = (
                "skipped: needs julia and $PYDEQ_BENCH_JULIA_PROJECT, a Julia project with the "
                "packages named in peers_deqn.jl"
            )
            return []
        script = str(BENCHMARKS / self.row.worker)
        solver = self.row.settings["solver"]
        return [julia, f"--project={project}", "--startup-file=no", script, solver, str(folder)]

    def ask(self, *words: str) -> dict[str, float]:
        """Send a command; return the numbers that come back, none if the contestant has failed."""
        if self._pipe is None:
            return {}
        assert self._pipe.stdin is not None
        try:
            print(*words, file=self._pipe.stdin, flush=True)
        except BrokenPipeError:
            self._end("failed: its process has ended")
            return {}
        words = self._hear("ok")
        return {name: float(value) for name, value in (word.split("=") for word in words)}

    def _hear(self, expected: str) -> tuple[str, ...]:
        assert self._pipe is not None
        assert self._pipe.stdout is not None
        line = self._pipe.stdout.readline()
        first, *rest = line.split() or ["failed", "its", "process", "has", "ended"]
        if first == expected:
            return tuple(rest)
        self._end(f"{'skipped' if first == 'skip' else first}: {' '.join(rest)}")
        return ()

    def _end(self, problem: str) -> None:
        self.problem = problem
        self.close()

    def close(self) -> None:
        """Let the process end."""
        if self._pipe is None:
            return
        pipe, self._pipe = self._pipe, None
        assert pipe.stdin is not None
        try:
            print("quit", file=pipe.stdin, flush=True)
            pipe.stdin.close()
        except (BrokenPipeError, OSError):
            pass
        try:
            pipe.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pipe.kill()
            pipe.wait()
        self._log.close()
