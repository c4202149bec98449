"""`captioner serve`: what it tells its workers."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from captioner.annotate.project import Project
from captioner.cli import app

supervisor = pytest.importorskip("captioner.serve.supervisor", reason="needs the extra `serve`")


def test_the_project_and_the_files_that_are_named_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = []

    class Supervisor:
        def __init__(self, load, settings, listener, workers):
            told.append(settings)
            listener.close()

        def run(self, announce):
            return 0

    monkeypatch.setattr(supervisor, "Supervisor", Supervisor)
    Project(tmp_path / "album.captions", create=True).close()
    arguments = ["serve", "--port", "0", "--project", str(tmp_path / "album.captions"), "--files", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (told[0].project, told[0].files) == (tmp_path / "album.captions", tmp_path)
