"""The command line: light to start, exact in its errors, honest in its exit codes."""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest
import tiny

from crossover.eval.cli.main import crossover, main

HEAVY = ("torch", "transformers", "trl", "dspy", "mlflow", "datasets", "litellm", "peft", "scipy", "pandas", "pydantic")


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["ls"], ["ls", "methods"]])
def test_help_and_ls_load_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    loaded = f"', '.join({{*{HEAVY}}} & set(sys.modules))"
    code = f"import sys, crossover.eval.cli.main as cli; cli.main({argv}); sys.exit({loaded} or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", sorted(crossover.commands))
def test_the_help_of_every_verb_ends_in_two_examples_with_flags_that_exist(verb: str) -> None:
    paragraphs = (crossover.commands[verb].help or "").strip().split("\n\n")
    for text in paragraphs[-2:]:
        lead, name, *words = shlex.split(text.strip().removeprefix("Example: "))
        assert (lead, name) == ("crossover", verb)
        crossover.commands[verb].make_context(verb, words[: words.index(">")] if ">" in words else words)
    assert paragraphs[-1].strip() != paragraphs[-2].strip()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["runn"], "error: unknown verb `runn`; did you mean `run`?\n"),
        (["run", "nope.yaml"], "error: nope.yaml: no such file; give the path of an experiment file\n"),
        (["run", "--seeds", "a"], "error: --seeds a: not whole numbers; write --seeds 0,1,2\n"),
        (["run", "--limit", "0"], "error: Invalid value for '--limit': 0 is not in the range x>=1.\n"),
        (["ui", "--store", "nothing"], "error: nothing: no runs here yet; `crossover run` first, or name the folder"),
    ],
)
def test_what_cannot_run_is_one_line_and_exit_2(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_dry_run_prints_the_cells_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "run",
                "--dry-run",
                "--only",
                "zero_shot,sft",
                "--set",
                f"models=[{tiny.model()}]",
            ]
        )
        == 0
    )
    captured = capsys.readouterr()
    head, *cells, total, memory = captured.out.splitlines()
    assert head.split("  ")[0] == "cell"
    assert [c.partition(" seed")[0] for c in cells][::2] == [
        f"stdlib_module  {tiny.NAME}  zero_shot,",
        f"stdlib_rag  {tiny.NAME}  zero_shot, retrieved, bm25 k=2,",
    ]
    assert total.startswith("total, at most")
    assert memory.startswith("memory with the models loaded: ")
    assert captured.err == "4 cells\n"
    assert list(tmp_path.iterdir()) == []


def test_the_environment_stands_in_for_flags_and_flags_win(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROSSOVER_RUN_SEEDS", "0,1,2")
    monkeypatch.setenv("CROSSOVER_RUN_ONLY", "many_shot")
    small = ["--set", f"models=[{tiny.model()}]"]
    # Values of a flag that may stand several times are separated by space.
    monkeypatch.setenv("CROSSOVER_RUN_SET", f"models=[{tiny.model()}]".replace(" ", ""))
    assert main(["run", "--dry-run"]) == 0
    assert capsys.readouterr().err == "6 cells\n"
    assert main(["run", "--dry-run", "--seeds", "0", *small]) == 0
    assert capsys.readouterr().err == "2 cells\n"


def test_init_writes_an_experiment_that_validates_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "tickets")]) == 0
    monkeypatch.chdir(tmp_path / "tickets")
    assert main(["validate", "crossover.yaml"]) == 0
    assert "tickets: train 29, val 3, test 60" in capsys.readouterr().out
    Path("test.jsonl").write_text("mine")
    assert main(["init"]) == 2
    assert capsys.readouterr().err.startswith("error: crossover.yaml, train.jsonl, test.jsonl: already there; ")
    assert Path("test.jsonl").read_text() == "mine"


def test_crossover_yaml_of_the_folder_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"version: 1\ntasks: [stdlib_rag]\nmodels: [{tiny.model()}]\nmethods: [zero_shot]\n"
    (tmp_path / "crossover.yaml").write_text(text)
    assert main(["run", "--dry-run"]) == 0
    assert f"stdlib_rag  {tiny.NAME}  zero_shot, retrieved, bm25 k=3, seed=0" in capsys.readouterr().out


def test_validate_reports_the_file_first_and_then_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "same", "label": "a"}\n{"text": "", "label": "a"}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "same", "label": "a"}\n')
    file, text = (
        tmp_path / "e.yaml",
        (
            "version: 1\nmetod: 1\ntasks:\n"
            "  - {name: t, program: classify, data: {train: train.jsonl, test: test.jsonl, val: no.jsonl}}\n"
            f"models: [{tiny.model()}]\nmethods: [zero_shot]\n"
        ),
    )
    file.write_text(text)
    assert main(["validate", str(file)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "2 errors, 0 warnings; data and methods are checked once the file is right\n"
    assert shown.err.splitlines() == [
        "error: e.yaml:2: unknown key `metod`; did you mean `methods`?",
        "error: e.yaml:4: no such file 'no.jsonl'; check the path, which starts at the experiment file",
    ]
    file.write_text(text.replace("metod: 1\n", "").replace(", val: no.jsonl", ""))
    assert main(["validate", str(file)]) == 2
    found = capsys.readouterr().err
    assert "train.jsonl:2: 'text' is empty" in found
    assert "test.jsonl:1: this test question also stands in train" in found


def test_a_sound_file_validates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(f"version: 1\ntasks: [stdlib_module]\nmodels: [{tiny.model()}]\nmethods: [zero_shot]\n")
    assert main(["validate", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("stdlib_module: train ")
    assert out.endswith("0 errors, 0 warnings\n")


def test_ls_shows_every_method_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"few_shot", "many_shot", "retrieved_demos", "sft", "zero_shot"} <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 3 for line in lines)


def test_doctor_never_shows_a_key(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-value")
    main(["doctor", "--store", str(store)])
    out = capsys.readouterr().out
    assert "a-secret-value" not in out
    assert next(line for line in out.splitlines() if "OPENAI_API_KEY" in line).endswith("present")
    assert "made by the first run" in out


def test_an_interrupt_is_exit_130(capsys: pytest.CaptureFixture[str]) -> None:
    @crossover.command("wait")
    def wait() -> None:
        raise KeyboardInterrupt

    try:
        assert main(["wait"]) == 130
    finally:
        del crossover.commands["wait"]
    assert capsys.readouterr().err.strip().startswith("interrupted: what was measured is kept")


def test_an_internal_fault_is_one_line_and_exit_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-value")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    @crossover.command("break")
    def broken() -> None:
        raise KeyError("no such thing,\nsaid a-secret-value")

    try:
        assert main(["break"]) == 3
    finally:
        del crossover.commands["break"]
    line = capsys.readouterr().err
    (file,) = tmp_path.glob("crossover-fault-*.txt")
    assert line.startswith("error: internal fault: KeyError: ")
    assert line.endswith(f"please report it with {file}, which holds the traceback\n")
    assert line.count("\n") == 1
    assert "in broken" in file.read_text()
    assert "a-secret-value" not in line + file.read_text()


def test_verbs_have_no_secret_options() -> None:
    options = [p for c in crossover.commands.values() for p in c.params if isinstance(p, click.Option)]
    assert all(o.help or o.name in ("port",) for o in options)


def test_validate_asks_the_methods_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "e.yaml"
    methods = "[{sft: {adapter: loro}}, {many_shot: {order: sideways}}, zero_shot]"
    file.write_text(f"version: 1\ntasks: [stdlib_module]\nmodels: [{tiny.model()}]\nmethods: {methods}\n")
    assert main(["validate", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "error: sft adapter=loro: sft adapter 'loro' is not one of lora, dora, qlora, none; set `adapter: lora`",
        captured.err.splitlines()[-1],
    ]
    assert captured.err.splitlines()[1].startswith("error: many_shot order=sideways: ")


NOISY = """
import os, sys, threading
import click
from crossover.eval.cli.options import json_option
@click.command()
@json_option
def verb(as_json):
    print("a library")
    os.write(1, b"its process")
    threading.Thread(target=print, args=("a thread",)).start()
    click.echo("{}", file=as_json)
    print("a late word")
verb()
"""


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_json_stands_alone_on_stdout_whatever_a_library_prints(flags: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", NOISY, *flags], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    silent = done.stderr if flags else done.stdout
    assert all(word in silent for word in ("a library", "its process", "a thread", "a late word"))
    assert done.stdout == "{}\n" if flags else "{}" in done.stdout
