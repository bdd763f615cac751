"""Write into ``pydeq/juliapkg.json`` what ``julia/Project.toml`` says.

    python .hatch/juliapkg.py

juliapkg looks for changes in the json file alone, so the file has the digest of the project; the
bound for Julia is the project's. What the project's extensions are for is installed beside it, but
for a GPU's packages. Every build does this too.
"""

import hashlib
import json
import tomllib
from pathlib import Path


def described(root: Path) -> dict:
    """Return what the json file is to hold."""
    content = (root / "julia" / "Project.toml").read_bytes()
    project = tomllib.loads(content.decode("utf-8"))
    found = json.loads((root / "pydeq" / "juliapkg.json").read_text(encoding="utf-8"))
    found["julia"] = project["compat"]["julia"]
    for name, uuid in project["weakdeps"].items():
        if name not in project["extensions"]["PyDEQCUDAExt"]:
            found["packages"][name] = {"uuid": uuid}
    found["project_sha256"] = hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()
    return found


def write(path: Path, description: dict) -> None:
    """Write the json file, where it is not as it should be."""
    text = json.dumps(description, indent=2) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    folder = Path(__file__).resolve().parents[1]
    write(folder / "pydeq" / "juliapkg.json", described(folder))
