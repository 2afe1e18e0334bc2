"""A team's tracking server: MLflow over PostgreSQL, which two machines send one experiment to at once."""

from pathlib import Path

import pytest
from openai_server import openai_server
from processes import ended, start
from remote_experiment import first_word, write_remote
from tracking_server import POSTGRES, postgres, tracking_server

from crossover.eval.cli.main import main


@pytest.mark.slow
@pytest.mark.skipif(POSTGRES is None, reason="NO POSTGRESQL: the shared tracking server is not tried")
def test_two_machines_send_to_one_server_over_postgresql_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They begin one experiment together, each with arms of its own."""
    from mlflow import MlflowClient

    arms = {"one": "[zero_shot, {few_shot: {demos: 2}}]", "two": "[{few_shot: {demos: 4}}]"}
    with (
        openai_server(first_word) as served,
        postgres() as database,
        tracking_server(tmp_path, database) as uri,
    ):
        argv = ["run", write_remote(tmp_path, served.url).name, "--tracking-uri", uri, "--no-progress"]
        runs = [
            start(tmp_path, tmp_path / store, *argv, "--store", store, "--set", f"methods={methods}")
            for store, methods in arms.items()
        ]
        assert [ended(run) for run in runs] == [0, 0]
        said = "".join((tmp_path / f"{store}.err").read_text() for store in arms)
        assert "MLflow" not in said, said
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name("words").experiment_id
        sent = client.search_runs([experiment])
        cells = sorted(r.data.tags["mlflow.runName"] for r in sent if r.data.tags["crossover.kind"] == "cell")
        assert cells == ["few_shot demos=2", "few_shot demos=4", "zero_shot"]
        assert all(r.info.artifact_uri.startswith("mlflow-artifacts:") and r.info.status == "FINISHED" for r in sent)
        capsys.readouterr()
        for store in arms:
            assert main(["sync", "--store", str(tmp_path / store), "--tracking-uri", uri]) == 0
            assert "nothing is waiting" in capsys.readouterr().out
        assert len(client.search_runs([experiment])) == len(sent)
