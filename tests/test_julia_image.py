"""The system image: built, used while it is of what is installed, said where it is not."""

import os

import pytest
from click.testing import CliRunner
from julia_machine import dependencies, make_julia, make_project, set_env
from test_julia_runtime import import_fake

from pydeq.cli.main import main
from pydeq.engines import find_engines
from pydeq.engines.julia import find_julia, install
from pydeq.engines.julia.image import find_image
from pydeq.errors import EngineUnavailableError

# Its arguments: --project=BUILDER, --startup-file=no, then -e CODE or build.jl PROJECT IMAGE ...
BUILDS = """#!/bin/sh
echo "$@" >> {log}
case "$3" in *build.jl) echo compiling >&2; printf 'an image' > "$5";; esac
"""


@pytest.fixture
def project(machine, monkeypatch):
    """The project of a pre-installed Julia, whose PackageCompiler writes a small file."""
    packages = [*dependencies(), "Zygote", "CUDA"]
    executable, project = make_julia(machine), make_project(machine / "p", packages)
    executable.write_text(BUILDS.format(log=machine / "log"))
    set_env(monkeypatch, PYTHON_JULIAPKG_EXE=executable, PYTHON_JULIAPKG_PROJECT=project)
    set_env(monkeypatch, PYTHON_JULIAPKG_OFFLINE="yes")
    monkeypatch.setattr(install, "_test", lambda found: None)
    return project


def installs(sysimage=None):
    return install.install_julia(False, False, lambda line: None, sysimage)


def test_it_is_built_and_used(project, machine, monkeypatch):
    assert installs().image is None
    found = installs(sysimage=True)
    image = project / "pydeq-image.so"
    assert found.image == str(image)
    assert image.read_text() == "an image"
    added, built = (machine / "log").read_text().splitlines()
    assert 'Pkg.add(name = "PackageCompiler"' in added
    new = project / "pydeq-image-new.so"
    assert built.endswith(f"build.jl {project} {new} PyDEQ PythonCall Zygote")
    assert import_fake(machine, monkeypatch, found)["PYTHON_JULIACALL_SYSIMAGE"] == str(image)
    (julia,) = (engine for engine in find_engines() if engine.name == "julia")
    assert f"system image {image}" in julia.detail

    installs()  # what is up to date is left as it is
    assert len((machine / "log").read_text().splitlines()) == 2


def change_manifest(project):
    manifest = project / "Manifest.toml"
    manifest.write_text(manifest.read_text() + "\n")


def another_julia(project):
    executable = project.parent / "other" / "julia"
    executable.parent.mkdir()
    executable.write_text(BUILDS.format(log=project.parent / "log"))
    executable.chmod(0o755)
    return {"PYTHON_JULIAPKG_EXE": executable}


CHANGES = {
    "another packages": change_manifest,
    "another Julia": another_julia,
    "another size": lambda project: os.truncate(project / "pydeq-image.so", 2),
    "is damaged": lambda project: os.truncate(project / "pydeq-image.json", 2),
    "is damaged: No such file": lambda project: (project / "pydeq-image.json").unlink(),
}


@pytest.mark.parametrize("said", CHANGES)
def test_one_of_something_else_is_not_used_until_it_is_built_anew(said, project, monkeypatch):
    installs(sysimage=True)
    set_env(monkeypatch, **(CHANGES[said](project) or {}))
    found = find_julia()
    assert found.ready
    assert found.image is None
    assert said in found.note
    assert "pydeq julia install --sysimage" in found.note
    output = CliRunner().invoke(main, ["doctor"]).output
    assert said in output
    assert installs().image is not None


def test_one_of_another_pydeq_is_not_used(project, tmp_path):
    image = find_image("julia", str(project), tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "Project.toml").write_text("")
    (tmp_path / "src" / "PyDEQ.jl").write_text("a")
    image.path.write_text("an image")
    image._record()
    assert not image.objection()
    (tmp_path / "src" / "PyDEQ.jl").write_text("b")
    assert "another PyDEQ" in image.objection()


def test_it_is_deleted_where_it_is_not_wanted(project):
    installs(sysimage=True)
    result = CliRunner().invoke(main, ["julia", "install", "--no-sysimage"])
    assert result.exit_code == 0
    assert "Deleted" in result.output
    assert not list(project.glob("pydeq-image*.*"))
    assert find_julia().image is None


def test_where_it_cannot_be_built_it_is_said(project, monkeypatch):
    installs(sysimage=True)
    change_manifest(project)
    (project.parent / "bin" / "julia").write_text("#!/bin/sh\necho no compiler >&2\nexit 3\n")
    with pytest.raises(EngineUnavailableError, match=r"exit code 3\)(?s:.)*no compiler"):
        installs(sysimage=True)
    assert find_julia().image is None
    assert not list(project.glob("pydeq-image*.*"))
