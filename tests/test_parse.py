"""The experiment file is read strictly: every fault with its line, all at once."""

import json
from pathlib import Path

import pytest

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.read import QUICKSTART, Overrides, quickstart, read_experiment, read_partly
from crossover.eval.experiment.spec import Experiment, Knowledge, Limits, Prices, Retrieval, plan
from crossover.models.errors import UserError
from crossover.models.spec import ModelSpec
from crossover.programs.spec import TaskSpec

SOUND = """version: 1
tasks: [stdlib_module]
models: [smollm2]
methods: [zero_shot, few_shot: {demos: 2}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a sound experiment file, which tests add to."""
    path = tmp_path / "mine.yaml"
    path.write_text(SOUND)
    return path


def faults(file: Path, text: str, overrides: Overrides | None = None) -> list[str]:
    file.write_text(text)
    experiment, problems = read_experiment(file, overrides)
    assert (experiment is None) == any(p.level == "error" for p in problems)
    return [str(p) for p in problems]


def test_the_quickstart_compares_four_methods_on_two_tasks() -> None:
    cells = plan(quickstart())
    assert len(cells) == 8
    assert {c.method.name for c in cells} == {"zero_shot", "many_shot", "retrieved_demos", "sft"}
    assert {c.model.name for c in cells} == {"smollm2"}


def test_a_short_file_gets_the_defaults(file: Path) -> None:
    experiment, problems = read_experiment(file)
    assert experiment is not None
    assert problems == []
    assert (experiment.name, experiment.seeds, experiment.retrieval) == ("mine", (0,), (Retrieval("bm25", 3),))
    assert experiment.methods == (MethodSpec("zero_shot"), MethodSpec("few_shot", {"demos": 2}))


def test_all_sections_reach_the_experiment(file: Path) -> None:
    more = "train_sizes: [64, 16]\nknowledge: [none, {train: gold, test: retrieved}]\nseeds: [3, 4]\nlimits: {usd: 5}\n"
    file.write_text(SOUND.replace("[smollm2]", "[{name: smollm2, prompt_format: chat, max_tokens: 9}]") + more)
    experiment, _ = read_experiment(file)
    assert experiment is not None
    assert experiment.train_sizes == (16, 64)
    assert experiment.knowledge == (Knowledge(), Knowledge("gold", "retrieved"))
    assert (experiment.seeds, experiment.limits) == ((3, 4), Limits(usd=5))
    assert experiment.models == (ModelSpec("smollm2", prompt_format="chat", max_tokens=9),)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E-05", 2e-5), ("1.e-3", 1e-3), ("3e-4", 3e-4)])
def test_numbers_with_an_exponent_need_no_point(file: Path, text: str, value: float) -> None:
    file.write_text(SOUND.replace("zero_shot", f"sft: {{lr: {text}}}") + "needs: {volume_per_month: 1e6}\n")
    experiment, problems = read_experiment(file)
    assert experiment is not None, problems
    assert experiment.methods[0].options == {"lr": value}
    assert experiment.needs.volume_per_month == 1_000_000


SWAPS = [
    ("version: 1", "version: 2", "error: mine.yaml:1: version 2; this program reads `version: 1`"),
    ("tasks:", "task:", "error: mine.yaml:2: unknown key `task`; did you mean `tasks`?"),
    ("stdlib_module", "stdlib_modul", "error: mine.yaml:2: unknown task `stdlib_modul`; did you mean `stdlib_module`?"),
    ("[smollm2]", "[smolm2]", "error: mine.yaml:3: unknown model `smolm2`; did you mean `smollm2`?"),
    ("[smollm2]", "smollm2", "error: mine.yaml:3: `models` is not a list; write one `- …` line for each"),
    ("[smollm2]", "[]", "error: mine.yaml:3: `models` is empty; list at least one"),
    ("demos: 2", "demo: 2", "error: mine.yaml:4: unknown key in few_shot `demo`; did you mean `demos`?"),
    ("demos: 2", "demos: two", "error: mine.yaml:4: `few_shot.demos` is 'two', not a whole number; correct it"),
    ("demos: 2", "demos: yes", "error: mine.yaml:4: `few_shot.demos` is True, not a whole number; correct it"),
    ("demos: 2", "demos: -1", "error: mine.yaml:4: `few_shot.demos` is -1, below 0; correct it"),
    ("zero_shot", "sft: {lr: '1e-4'}", "error: mine.yaml:4: `sft.lr` is '1e-4', not a number; correct it"),
    ("zero_shot", "sft: {r: 8}", "error: mine.yaml:4: unknown key in sft `r`; did you mean `rank`?"),
    (
        "zero_shot",
        "sft: {num_train_epochs: 1}",
        "error: mine.yaml:4: unknown key in sft `num_train_epochs`; did you me",
    ),
    ("zero_shot", "sft: {search: 3}", "error: mine.yaml:4: `sft.search` is 3, not a mapping; correct it"),
    ("zero_shot", "zero_shott", "error: mine.yaml:4: unknown method `zero_shott`; did you mean `zero_shot`?"),
    (
        "[smollm2]",
        "[{name: smollm2, prompt_format: plane}]",
        "error: mine.yaml:3: unknown prompt_format `plane`; did you mean `plain`?",
    ),
    (
        "[smollm2]",
        "['local:./none']",
        "error: mine.yaml:3: no such folder './none'; check the path, which starts at the experiment file",
    ),
    (
        "zero_shot",
        "chain: [sft]",
        "error: mine.yaml:4: a chain needs at least two methods; write `- chain: [gepa, sft]`",
    ),
]


@pytest.mark.parametrize(("sound", "broken", "message"), SWAPS)
def test_a_fault_names_line_value_and_remedy(file: Path, sound: str, broken: str, message: str) -> None:
    found = faults(file, SOUND.replace(sound, broken, 1))
    assert any(line.startswith(message) for line in found), found


ADDITIONS = [
    ("name: a\nname: b", "error: mine.yaml:6: `name` stands twice in the file; keep one"),
    ("knowledge: [golden]", "error: mine.yaml:5: unknown knowledge `golden`; did you mean `gold`?"),
    ("retrieval: {k: 0}", "error: mine.yaml:5: `retrieval.k` is 0; retrieve at least one passage"),
    ("retrieval: {backend: hybrid, alpha: 2}", "error: mine.yaml:5: alpha is 2"),
    ("retrieval: {backend: bm25, alpha: 0.5}", "error: mine.yaml:5: unknown key in retrieval `alpha`; use one of "),
    ("retrieval: {backend: hybrid, fusion: rnk}", "error: mine.yaml:5: unknown fusion 'rnk'; use one of score, rank"),
    ("retrieval: [{k: 1}, {k: 1}]", "error: mine.yaml:5: `bm25 k=1` stands 2 times in retrieval; keep one"),
    ("retrieval: {folder: /x}", "error: mine.yaml:5: unknown key in retrieval `folder`"),
    ("retrieval: {backend: bm52}", "error: mine.yaml:5: unknown retrieval backend `bm52`; did you mean `bm25`?"),
    (
        "prices: {smollm2: {input_per_million: 1, output_per_million: 2}}",
        "error: mine.yaml:5: smollm2 runs here, and has no price for tokens; set `machine_hour_usd`",
    ),
    ("prices: {openai/x: {input_per_million: 1}}", "error: mine.yaml:5: unknown key in prices `openai/x`; use one of"),
    ("prices: {machine_hour_usd: .nan}", "error: mine.yaml:5: `prices.machine_hour_usd` is nan, not a finite number; "),
    ("seeds: [1, 1]", "error: mine.yaml:5: `1` stands 2 times in seeds; keep one"),
    ("train_sizes: [0]", "error: mine.yaml:5: `train_sizes` holds 0; write at least 1"),
    ("teacher: openai/gpt-5", "warning: mine.yaml:5: `teacher` is not used by any of the methods; remove it"),
    (
        "needs: {max_usd_per_month: 5}",
        "error: mine.yaml:5: `max_usd_per_month` without `volume_per_month`; add the volume that it is for",
    ),
    ("needs: {refresh_months: 0}", "error: mine.yaml:5: `needs.refresh_months` is 0; write after how many months"),
    ("prices: {label_usd: -1}", "error: mine.yaml:5: `prices.label_usd` is -1, below 0; correct it"),
    ("prices: {label_uds: 1}", "error: mine.yaml:5: unknown key in prices `label_uds`; did you mean `label_usd`?"),
    (
        "prices: {input_usd_per_million: 3}",
        "error: mine.yaml:5: `input_usd_per_million` and `output_usd_per_million` are used together; add the other one",
    ),
    (
        "limits: {usd: '${CROSSOVER_NOT_SET}'}",
        "error: mine.yaml:5: environment variable CROSSOVER_NOT_SET is not set; export CROSSOVER_NOT_SET=…",
    ),
]


@pytest.mark.parametrize(("line", "message"), ADDITIONS)
def test_a_section_is_checked(file: Path, line: str, message: str) -> None:
    found = faults(file, f"{SOUND}{line}\n")
    assert any(f.startswith(message) for f in found), found


def test_all_faults_come_at_once_in_the_order_of_the_file(file: Path) -> None:
    found = faults(file, "version: 3\nmetod: x\ntasks: [nope]\nmodels: [smollm2]\nmethods: [gepa2]\nseeds: [x]\n")
    assert [f.split(":")[2] for f in found] == ["1", "2", "3", "5", "6"]


def test_tokens_have_a_price_by_the_name_of_their_model(file: Path) -> None:
    file.write_text(
        "tasks: [stdlib_module]\nmodels: [openai/x, hosted_vllm/m]\nmethods: [zero_shot]\n"
        "prices:\n  machine_hour_usd: 2\n"
        "  openai/x: {input_per_million: 1, output_per_million: 2, cached_per_million: 0.5}\n"
        "  hosted_vllm/m: {input_per_million: 3, output_per_million: 4}\n"
    )
    experiment, problems = read_experiment(file)
    assert problems == []
    assert experiment is not None
    assert experiment.prices == Prices(
        machine_hour_usd=2,
        models={
            "openai/x": {"input_per_million": 1, "output_per_million": 2, "cached_per_million": 0.5},
            "hosted_vllm/m": {"input_per_million": 3, "output_per_million": 4},
        },
    )
    set_ = Overrides(settings=("prices.openai/x-1.5={input_per_million: 1, output_per_million: 2}",))
    file.write_text(file.read_text().replace("openai/x, ", "openai/x, openai/x-1.5, "))
    assert faults(file, file.read_text(), set_) == []
    set_ = Overrides(settings=(*set_.settings, "prices.openai/x-1.5.cached_per_million=0.25"))
    experiment, _ = read_experiment(file, set_)
    assert experiment is not None
    assert experiment.prices.models["openai/x-1.5"]["cached_per_million"] == 0.25
    assert faults(file, file.read_text().replace(", output_per_million: 4", "")) == [
        "error: mine.yaml:7: the price of hosted_vllm/m lacks output_per_million; add it: dollars for a million"
    ]


def test_all_but_tasks_has_a_default(file: Path) -> None:
    file.write_text("tasks: [stdlib_module]\n")
    experiment, problems = read_experiment(file)
    assert (problems, experiment) == ([], Experiment("mine", (TaskSpec("stdlib_module"),), file=file))
    assert [m.name for m in Experiment.methods] == ["zero_shot", "few_shot", "retrieved_demos", "many_shot", "sft"]
    assert [m.name for m in Experiment.models] == ["smollm2"]
    assert faults(file, "version: 1\nmodels: [smollm2]\n") == [
        "error: mine.yaml:1: `tasks` is missing; add a list `tasks:`, or let `crossover init` write it"
    ]


def test_variables_of_the_environment_are_expanded_and_typed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSOVER_TEST_K", "7")
    file.write_text(
        SOUND + "retrieval: {k: ${CROSSOVER_TEST_K}}\nname: 'v${CROSSOVER_TEST_K}'\n".replace("{k: $", "{k: $")
    )
    with pytest.raises(UserError, match="not valid YAML"):
        read_experiment(file)
    file.write_text(SOUND + "retrieval:\n  k: ${CROSSOVER_TEST_K}\nname: 'v${CROSSOVER_TEST_K}'\n")
    experiment, _ = read_experiment(file)
    assert experiment is not None
    assert (experiment.retrieval[0].k, experiment.name) == (7, "v7")


def test_a_chain_a_budget_and_a_teacher_are_read(file: Path) -> None:
    file.write_text(
        "version: 1\ntasks: [stdlib_module]\nmodels: [smollm2]\nbudget: {metric_calls: 50, usd: 0.5}\n"
        "teacher: {name: openai/gpt-4.1-mini, max_tokens: 900}\n"
        "methods: [chain: [gepa, sft: {epochs: 1}], mipro: {metric_calls: 9}]\n"
    )
    experiment, problems = read_experiment(file)
    assert experiment is not None
    assert problems == []
    assert [m.label for m in experiment.methods] == ["gepa > sft epochs=1", "mipro metric_calls=9"]
    assert (experiment.budget.metric_calls, experiment.budget.usd) == (50, 0.5)
    assert experiment.teacher is not None
    assert experiment.teacher.max_tokens == 900


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("chain: [gepa, nope]", "unknown method `nope`"),
        ("chain: [gepa, chain: [sft, gepa]]", "a chain stands within a chain"),
        ("chain: [gepa: {usd: 1}, sft]", "a step of a chain has a budget"),
        ("few_shot: {metric_calls: 3}", "unknown key in few_shot `metric_calls`"),
        ("gepa", "`budget.metric_calls` is 0"),
    ],
)
def test_what_is_wrong_with_a_chain_or_a_budget_is_told(file: Path, methods: str, message: str) -> None:
    text = SOUND.replace("zero_shot", methods, 1) + ("budget: {metric_calls: 0}\n" if methods == "gepa" else "")
    assert any(message in f for f in faults(file, text))


def own_task(tmp_path: Path, **changes: object) -> Path:
    """Write an experiment with a task of the user's own."""
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    task = {"name": "own", "program": "classify", "data": {"train": "train.jsonl", "test": "train.jsonl"}} | changes
    file = tmp_path / "own.yaml"
    file.write_text(
        json.dumps({"version": 1, "tasks": [task], "models": ["smollm2"], "methods": ["zero_shot"]}, indent=1)
    )
    return file


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path("/"))
    experiment, problems = read_experiment(own_task(tmp_path, metric="mine.py:score", program="./mine.py:Mine"))
    assert experiment is not None, problems
    (task,) = experiment.tasks
    assert task.data["train"] == str(tmp_path / "train.jsonl")
    assert (task.metric, task.program) == (f"{tmp_path}/mine.py:score", f"{tmp_path}/mine.py:Mine")


def test_a_missing_file_is_named_with_its_line_and_the_task_is_kept(tmp_path: Path) -> None:
    file = own_task(tmp_path, data={"train": "train.jsonl", "test": "nope.jsonl"})
    experiment, problems = read_partly(file)
    remedy = "check the path, which starts at the experiment file"
    assert [str(p) for p in problems] == [f"error: own.yaml:9: no such file 'nope.jsonl'; {remedy}"]
    assert [t.name for t in experiment.tasks] == ["own"]


def test_a_task_of_ones_own_needs_program_and_data(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    found = faults(file, SOUND.replace("stdlib_module", "{name: own, metric: exact_match}"))
    assert found == ["error: own.yaml:2: a task lacks program, data; add them, or name a built-in task"]


def test_settings_replace_values_and_keep_the_lines_of_other_faults(file: Path) -> None:
    settings = ("methods.few_shot.demos=9", "methods.0=many_shot", "models.smollm2.max_tokens=5", "limits.usd=2")
    experiment, _ = read_experiment(file, Overrides(settings=settings))
    assert experiment is not None
    assert [m.label for m in experiment.methods] == ["many_shot", "few_shot demos=9"]
    assert (experiment.models[0].max_tokens, experiment.limits.usd) == (5, 2)
    broken = faults(file, SOUND.replace("zero_shot", "zero"), Overrides(settings=("retrieval.q=1",)))
    assert [b.rpartition(";")[0] for b in broken] == [
        "error: --set retrieval.q: unknown key in retrieval `q`",
        "error: mine.yaml:4: unknown method `zero`",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds", "--set seeds: no `=`; write --set prices.machine_hour_usd=2.5"),
        ("methods.sft.rank=4", "--set methods.sft.rank=4: the list has no entry `sft`; use a number from 0 to 1"),
        ("version.a=1", "--set version.a=1: nothing can stand below what comes before `a`; set that instead"),
    ],
)
def test_a_setting_that_points_nowhere_is_refused(file: Path, setting: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_experiment(file, Overrides(settings=(setting,)))
    assert str(caught.value) == message


def test_flags_win_over_the_file(file: Path) -> None:
    file.write_text(SOUND + "seeds: [5]\nlimits: {usd: 3, minutes: 4}\n")
    flags = Overrides(limit=7, only=("few_shot",), seeds=(1, 2), limits={"usd": 0.0})
    experiment, _ = read_experiment(file, flags)
    assert experiment is not None
    assert [m.name for m in experiment.methods] == ["few_shot"]
    assert (experiment.limit, experiment.seeds, experiment.limits) == (7, (1, 2), Limits(0.0, 4))


def test_only_must_name_a_method_of_the_file(file: Path) -> None:
    found = faults(file, SOUND, Overrides(only=("few_shots",)))
    what = "unknown method of this experiment in --only `few_shots`"
    assert found == [f"error: command line: {what}; did you mean `few_shot`?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [a\n", "mine.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'; correct the line"),
        ("", "mine.yaml: the file is empty; it needs `tasks`"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_experiment(file)
    assert str(caught.value) == message


def test_the_quickstart_is_a_file_to_copy(tmp_path: Path) -> None:
    copy = tmp_path / "quickstart.yaml"
    copy.write_bytes(QUICKSTART.read_bytes())
    experiment, problems = read_experiment(copy)
    assert experiment is not None
    assert problems == []


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ("{name: smollm2, decode: lables}", "labels"),
        ("{name: openai/gpt-5-mini, decode: labels}", "runs elsewhere"),
        ("{name: openai/gpt-5-mini, decode: schema}", "prompt_format: json"),
    ],
)
def test_decode_names_what_it_cannot_do(file: Path, model: str, fault: str) -> None:
    (found,) = faults(file, SOUND.replace("[smollm2]", f"[{model}]"))
    assert fault in found


def test_a_model_that_reasons_gets_the_settings_that_its_api_takes(file: Path) -> None:
    file.write_text(SOUND.replace("[smollm2]", "[openai/gpt-5-mini, openai/gpt-4o-mini, openai/gpt-5-chat-latest]"))
    experiment, _ = read_experiment(file)
    assert experiment is not None
    assert [(m.max_tokens, m.temperature) for m in experiment.models] == [(16000, 1.0), (64, 0.0), (64, 0.0)]
    (found,) = faults(file, SOUND.replace("[smollm2]", "[{name: openai/o3, max_tokens: 900}]"))
    assert "openai/o3 reasons" in found
