"""Build hook: a wheel carries the Julia project, and a juliapkg.json that says where.

In a source tree, and so in an editable install, ``pydeq/juliapkg.json`` points at ``../julia``. In
a wheel the project is inside the package. Either has the bound and the digest of the project as it
is now: see ``juliapkg.py``.
"""

import runpy
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CARRIED = ("LICENSE", "Project.toml", "calls", "src", "ext", "original", "sysimage")
INSIDE = "_julia"


class JuliaProjectHook(BuildHookInterface):
    """Adds the Julia project to a wheel."""

    def initialize(self, version, build_data):
        """Add the files; an editable install finds them in the source tree."""
        root = Path(self.root)
        juliapkg = runpy.run_path(str(root / ".hatch" / "juliapkg.py"))
        described = juliapkg["described"](root)
        if version == "editable":
            juliapkg["write"](root / "pydeq" / "juliapkg.json", described)
            return
        described["packages"]["PyDEQ"]["path"] = INSIDE
        self._folder = tempfile.TemporaryDirectory()
        description = Path(self._folder.name) / "juliapkg.json"
        juliapkg["write"](description, described)
        included = build_data["force_include"]
        included[str(description)] = "pydeq/juliapkg.json"
        for name in CARRIED:
            if (root / "julia" / name).exists():
                included[str(root / "julia" / name)] = f"pydeq/{INSIDE}/{name}"

    def finalize(self, version, build_data, artifact_path):
        """Remove what was only needed to build."""
        if version != "editable":
            self._folder.cleanup()
