"""The Weaviate backend through the real client: faults in one line, imports that resume, searches that are retried."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import dspy
import pytest
import tiny
from loopback_weaviate import Loopback, serve
from processes import UNTRACKED, free_port

from crossover.eval.cli.main import main
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Retrieval
from crossover.models.errors import UserError
from crossover.optimizers.common.nearest import NearestDemos
from crossover.programs.retrieval import asking
from crossover.programs.retrieval import weaviate as backend
from crossover.programs.retrieval.base import Indexed, Passage, RetrievalFailed
from crossover.programs.retrieval.weaviate import Weaviate

CORPUS = [Passage(f"p{n}", f"fact number{n} about the {w}") for n, w in enumerate(("sea", "sun", "moon", "wind"))]
DOCKER = "docker run -p 8080:8080 -p 50051:50051 cr.weaviate.io/semitechnologies/weaviate:1.39.0"
Start = Callable[..., Loopback]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take settings of this machine away, and the waiting out of the retries."""
    for name in ("WEAVIATE_URL", "WEAVIATE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(backend, "PAUSE", 0.01)
    monkeypatch.setattr(asking, "PAUSE", 0.01)


@pytest.fixture
def start() -> Iterator[Start]:
    """Return what starts a loopback server that lives as long as the test."""
    with ExitStack() as stack:
        yield lambda **state: stack.enter_context(serve(Loopback(**state)))


@pytest.fixture
def opened() -> Iterator[Callable[[Loopback], Weaviate]]:
    """Return what opens the backend on a server, and close it in the end."""
    made: list[Weaviate] = []

    def make(server: Loopback) -> Weaviate:
        made.append(Weaviate(url=server.url, grpc_port=server.grpc_port, query="bm25", collection="t"))
        return made[-1]

    yield make
    for retriever in made:
        retriever.close()


Open = Callable[[Loopback], Weaviate]


def fault(retriever: Weaviate) -> str:
    with pytest.raises(UserError) as caught:
        retriever.index(CORPUS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_server_is_one_line_with_the_command_that_starts_one() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert fault(Weaviate(url=url, query="bm25")) == (
        f"Weaviate at {url} cannot be reached; set `url` or WEAVIATE_URL, or run one: {DOCKER}"
    )


def test_a_missing_key_is_asked_for(start: Start, opened: Open) -> None:
    server = start(key="secret")
    assert fault(opened(server)) == (
        f"Weaviate at {server.url} asks for a key; export WEAVIATE_API_KEY=… with one that it knows"
    )


def test_a_wrong_key_is_named_and_not_shown(start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(key="secret")
    monkeypatch.setenv("WEAVIATE_API_KEY", "guess-1234")
    message = fault(opened(server))
    assert message.startswith(f"Weaviate at {server.url} refuses the key in WEAVIATE_API_KEY")
    assert "guess-1234" not in message


def test_the_right_key_opens(start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVIATE_API_KEY", "secret")
    assert opened(start(key="secret")).index(CORPUS) == Indexed(added=4, kept=0)


def test_an_old_server_is_told_by_its_version(start: Start, opened: Open) -> None:
    server = start(version="1.20.3")
    assert fault(opened(server)) == (
        f"Weaviate at {server.url} is version 1.20.3, and the client needs 1.27 or later; upgrade it: {DOCKER}"
    )


def test_a_blocked_grpc_port_is_named(start: Start, opened: Open) -> None:
    server = start()
    server.grpc_port = free_port()
    message = fault(opened(server))
    assert f"its gRPC port {server.grpc_port} does not" in message
    assert message.endswith("or set `grpc_port`")


def test_another_web_server_is_not_taken_for_weaviate(start: Start, opened: Open) -> None:
    server = start(weaviate=False)
    assert fault(opened(server)).startswith(f"Weaviate at {server.url} does not answer as Weaviate does")


def test_a_cloud_cluster_needs_a_key() -> None:
    message = fault(Weaviate(url="demo.weaviate.cloud", query="bm25"))
    assert message == "Weaviate at https://demo.weaviate.cloud needs a key; export WEAVIATE_API_KEY=…"


def test_an_embedded_server_without_its_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An address that is nobody's stands for no network: the client downloads the binary from GitHub.
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("weaviate.embedded.DEFAULT_BINARY_PATH", str(tmp_path))
    monkeypatch.setattr("weaviate.connect.helpers.DEFAULT_BINARY_PATH", str(tmp_path), raising=False)
    message = fault(Weaviate(embedded=True, query="bm25", folder=tmp_path))
    assert message.startswith("embedded Weaviate did not start: ")
    assert message.endswith(f"give the client its binary of 1.39.0, or run a server and set `url`: {DOCKER}")


def test_a_second_import_imports_nothing(start: Start, opened: Open) -> None:
    server = start()
    assert opened(server).index(CORPUS) == Indexed(added=4, kept=0)
    assert opened(server).index(CORPUS) == Indexed(added=0, kept=4)
    assert server.imported == 4


def test_only_what_changed_is_imported_and_what_is_gone_is_deleted(start: Start, opened: Open) -> None:
    server = start()
    retriever = opened(server)
    retriever.index(CORPUS)
    changed = [Passage("p0", "a new fact about zeppelins"), *CORPUS[2:], Passage("p9", "one more")]
    assert retriever.index(changed) == Indexed(added=2, kept=2, removed=1)
    assert sorted(o["passage"] for o in server.objects.values()) == ["p0", "p2", "p3", "p9"]
    assert retriever.search(["zeppelins"], 1)[0][0][0] == "p0"


def test_a_refused_object_is_tried_again(start: Start, opened: Open) -> None:
    server = start(refuse={"p2": 2})
    notes: list[str] = []
    assert opened(server).index(CORPUS, notes.append) == Indexed(added=4, kept=0)
    assert len(server.objects) == 4
    assert notes[0].startswith("1 passages refused, tried again: 'p2': ")


def test_objects_refused_for_good_are_named_and_the_next_run_imports_only_them(start: Start, opened: Open) -> None:
    server = start(refuse={"p1": 3, "p2": 3})
    message = fault(opened(server))
    assert f"Weaviate at {server.url} refused 2 passages 3 times ('p1', 'p2'): " in message
    assert "read-only" in message
    assert len(server.objects) == 2
    assert opened(server).index(CORPUS) == Indexed(added=2, kept=2)


def test_a_search_is_tried_again_and_fails_as_data_when_the_server_stays_silent(start: Start, opened: Open) -> None:
    server = start()
    retriever = opened(server)
    retriever.index(CORPUS)
    server.fail_searches = 1
    assert retriever.search(["about the moon"], 1)[0][0][0] == "p2"
    server.fail_searches, retriever.timeout = 10**6, 3.0
    with pytest.raises(RetrievalFailed, match=r"no answer for 3 s: .*shard is being moved"):
        retriever.search(["about the moon"], 1)


@dataclass
class Restarting:
    """A server that is down, and comes back when a line says that it is waited for."""

    server: Loopback
    stack: ExitStack
    lines: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        if "does not answer" in line:
            if not self.lines:
                self.stack.enter_context(serve(self.server))
            self.lines.append(line)


@pytest.fixture
def restarting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Weaviate, Restarting]]:
    """Return the backend with its corpus indexed, and the server, which has gone down since."""
    with ExitStack() as stack:
        with serve(Loopback()) as server:
            retriever = Weaviate(url=server.url, grpc_port=server.grpc_port, query="bm25", collection="t")
            stack.callback(retriever.close)
            retriever.index(CORPUS)
        monkeypatch.setattr(asking, "QUIET", 0.1)
        yield retriever, Restarting(server, stack)


def test_a_server_that_restarts_is_waited_for_with_one_line(
    restarting: tuple[Weaviate, Restarting], monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever, there = restarting
    monkeypatch.setattr(retriever, "_note", there.note)
    assert retriever.search([f"number{n}" for n in range(4)], 1) == [[(f"p{n}", 1.0)] for n in range(4)]
    assert there.lines == [f"warning: Weaviate at {there.server.url}: it does not answer; waiting for it up to 60 s"]


def test_an_import_goes_on_when_the_server_is_back(restarting: tuple[Weaviate, Restarting]) -> None:
    retriever, there = restarting
    assert retriever.index([*CORPUS, Passage("p9", "one more")], there.note) == Indexed(added=1, kept=4)
    assert there.lines


def test_a_server_that_stays_away_is_waited_for_once(tmp_path: Path) -> None:
    with serve(Loopback()) as server:
        retriever = Weaviate(url=server.url, grpc_port=server.grpc_port, query="bm25", collection="t")
        retriever.index(CORPUS)
    retriever.timeout = 0.5
    with pytest.raises(RetrievalFailed, match=r"no answer for 0\.5 s"):
        retriever.search(["about the moon"], 1)
    with pytest.raises(RetrievalFailed, match="cannot be reached; set `url`"):
        retriever.search(["about the moon"], 1)


def test_a_question_without_a_word_has_no_hits(start: Start, opened: Open) -> None:
    retriever = opened(start())
    retriever.index(CORPUS)
    assert [len(hits) for hits in retriever.search(["", "number1", "?!", " \n"], 1)] == [0, 1, 0, 0]


def test_how_long_a_server_is_waited_for_changes_no_result() -> None:
    assert Retrieval("weaviate", options={"timeout": 5.0}).facts() == Retrieval("weaviate").facts()


def test_many_questions_keep_their_order(start: Start, opened: Open) -> None:
    retriever = opened(start())
    corpus = [Passage(f"q{n}", f"only{n} word") for n in range(300)]
    retriever.index(corpus)
    found = retriever.search([f"only{n}" for n in range(300)], 1)
    assert [hits[0][0] for hits in found] == [p.id for p in corpus]


def test_collections_are_named_by_schema_and_corpus(start: Start, opened: Open) -> None:
    server = start()
    opened(server).index(CORPUS)
    assert list(server.schemas) == ["Crossover_v1_t_words"]


def test_corpora_with_equal_ids_do_not_replace_each_other(start: Start) -> None:
    """Passages are often numbered, so that two corpora have the same ids."""
    server = start()
    corpora = [
        [Passage("1", "of apples"), Passage("2", "of pears")],
        [Passage("1", "of ships"), Passage("2", "of sail")],
    ]
    made = [Weaviate(url=server.url, grpc_port=server.grpc_port, query="bm25") for _ in corpora]
    for retriever, corpus in zip(made, corpora, strict=True):
        assert retriever.index(corpus) == Indexed(added=2, kept=0)
    assert [[i for i, _ in r.search(["pears"], 1)[0]] for r in made] == [["2"], []]
    assert made[0].index(corpora[0][::-1]) == Indexed(added=0, kept=2)
    for retriever in made:
        retriever.close()


def test_pools_of_demonstrations_do_not_replace_each_other_under_a_name(start: Start) -> None:
    server = start()
    options = {"url": server.url, "grpc_port": server.grpc_port, "query": "bm25", "collection": "mine"}
    made = [
        NearestDemos(
            dspy.Predict("text -> label"),
            [dspy.Example(text=text, label="x").with_inputs("text")],
            1,
            lambda program, inputs: True,
            index="weaviate",
            options=options,
        )
        for text in ("apples", "ships")
    ]
    assert [[e["text"] for e in nearest.nearest({"text": "the apples"})] for nearest in made] == [["apples"], []]
    assert [name.startswith("Crossover_v1_demos_mine_") for name in server.schemas] == [True, True]
    for nearest in made:
        nearest._index.close()


def test_a_name_for_several_corpora_is_a_fault_of_the_file(start: Start, tmp_path: Path) -> None:
    file = write_rag(tmp_path, start(), ", collection: faq")
    assert read_experiment(file)[1] == []
    (entry,) = [line for line in file.read_text().splitlines() if "faq" in line]
    file.write_text(file.read_text() + entry.replace("faq", "faq, chunk_words: 50") + "\n")
    assert [(p.where, p.what, p.remedy) for p in read_experiment(file)[1]] == [
        (
            "x.yaml:6",
            "the collection `faq` would hold 2 different sets of passages in turn",
            "leave `collection` out: each set gets a collection of its own",
        )
    ]


@pytest.mark.parametrize("option", [{"alpha": 1.5}, {"query": "bm26"}])
def test_options_are_checked_before_anything_is_connected(option: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Weaviate(**option)  # type: ignore[arg-type]


def write_rag(folder: Path, server: Loopback, more: str = "") -> Path:
    """Write data, a corpus and an experiment that retrieves by the server, and return the experiment."""
    for split in ("train", "val", "test"):
        rows = [
            {"id": f"{split}{n}", "question": f"what of {split} {n}?", "answer": "x", "gold_passage_ids": ["p0"]}
            for n in range(4)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"id": p.id, "text": p.text}) for p in CORPUS))
    file = folder / "x.yaml"
    file.write_text(
        "version: 1\ntasks: [{name: t, program: rag, corpus: corpus.jsonl, "
        "data: {train: train.jsonl, val: val.jsonl, test: test.jsonl}}]\n"
        f"models: [{tiny.model(max_tokens=2)}]\nmethods: [zero_shot]\nretrieval:\n"
        f"  - {{backend: weaviate, query: bm25, url: '{server.url}', grpc_port: {server.grpc_port}{more}}}\n"
        "  - {k: 1}\n"
    )
    return file


def test_a_server_that_goes_away_fails_its_cells_and_the_others_go_on(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rag(tmp_path, start(fail_searches=10**6), ", timeout: 3.0")
    assert main(["run", str(file), "--store", str(tmp_path / "s"), "--json", *UNTRACKED]) == 4
    shown = capsys.readouterr()
    assert [arm["retrieval"] for arm in json.loads(shown.out)["arms"]] == ["bm25 k=1"]
    assert "could not be fitted: RetrievalFailed: Weaviate at" in shown.err


def command(folder: Path, *argv: str, warn: str = "default") -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own, as a person does; `warn` is what `-W` gets."""
    flags = () if warn == "default" else ("-W", warn)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    words = [sys.executable, *flags, "-m", "crossover.eval.cli.main", *argv]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("warn", ["default", "error::ResourceWarning"])
def test_index_closes_its_connection_and_shows_no_warning(start: Start, tmp_path: Path, warn: str) -> None:
    server = start()
    write_rag(tmp_path, server)
    options = ["--set", f"url={server.url}", "--set", f"grpc_port={server.grpc_port}", "--set", "query=bm25"]
    done = command(tmp_path, "index", "corpus.jsonl", "--backend", "weaviate", *options, "-q", warn=warn)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 passages in weaviate: 4 indexed" in done.stdout


@pytest.mark.slow
def test_a_run_closes_its_connections(start: Start, tmp_path: Path) -> None:
    server = start()
    file = write_rag(tmp_path, server)
    place = f"url: '{server.url}', grpc_port: {server.grpc_port}, query: bm25"
    demos = f"retrieved_demos: {{demos: 1, index: weaviate, index_options: {{{place}}}}}"
    file.write_text(file.read_text().replace("[zero_shot]", f"[zero_shot, {demos}]"))
    done = command(tmp_path, "run", file.name, "--no-progress", *UNTRACKED, warn="error::ResourceWarning")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert len(server.schemas) == 2


def test_collections_are_listed_and_removed(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start()
    monkeypatch.setenv("WEAVIATE_URL", server.url)
    assert main(["ls", "collections"]) == 0
    assert capsys.readouterr() == ("", f"no collection of crossover on Weaviate at {server.url}\n")
    for name in ("faq", "demos_1a2b", "demos_3c4d"):
        retriever = Weaviate(grpc_port=server.grpc_port, query="bm25", collection=name)
        retriever.index(CORPUS)
        retriever.close()
    server.schemas["Mine"] = server.schemas["Crossover_v1_faq_words"] | {"class": "Mine"}
    assert main(["ls", "collections"]) == 0
    assert capsys.readouterr().out.split() == [
        *("Crossover_v1_demos_1a2b_words", "Demonstrations."),
        *("Crossover_v1_demos_3c4d_words", "Demonstrations."),
        *("Crossover_v1_faq_words", "Passages."),
    ]
    assert main(["index", "--remove", "Crossover_v1_demos_*"]) == 0
    assert capsys.readouterr().out == "removed Crossover_v1_demos_1a2b_words\nremoved Crossover_v1_demos_3c4d_words\n"
    assert list(server.schemas) == ["Crossover_v1_faq_words", "Mine"]
    assert main(["index", "--remove", "Mine"]) == 2
    assert "has no collection 'Mine'; `crossover ls collections` lists them" in capsys.readouterr().err
    assert main(["index"]) == 2
    assert "give either the FILE of a corpus, or --remove" in capsys.readouterr().err
