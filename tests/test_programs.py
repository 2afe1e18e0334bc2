import subprocess
import sys
from pathlib import Path

import dspy
import pytest

import crossover.programs.modules
import crossover.programs.tasks
from crossover.models.errors import UserError
from crossover.programs.load import builtin_task, load_object, load_program, program_names, task_names
from crossover.programs.metrics import exact_match, metric_for, metric_names, normalise, token_f1
from crossover.programs.modules.classify import Classify
from crossover.programs.modules.rag import Rag
from crossover.programs.retrieval.base import Passage
from crossover.programs.retrieval.bm25 import Bm25
from crossover.programs.splits import fold, opening, split_by_hash
from crossover.programs.tasks.stdlib.docstrings import harvest, mask
from crossover.programs.validate import validate

BUILTIN = ["stdlib_module", "stdlib_rag"]


def build(name: str, base: Path = Path()) -> dspy.Module:
    return load_program(name, inputs=("text",), output="label", labels=("a", "b"), instructions="", base=base)()


def test_classify_lists_its_labels_and_keeps_the_default_instructions():
    signature = build("classify").predict.signature
    assert signature.output_fields["label"].json_schema_extra["desc"] == "one of: a, b"
    assert signature.instructions == dspy.Signature("text -> label").instructions


def test_classify_does_not_list_more_than_150_labels():
    signature = Classify(["text"], "label", [str(n) for n in range(151)]).predict.signature
    assert signature.output_fields["label"].json_schema_extra["desc"] == "${label}"


def test_rag_reads_passages_first_and_takes_instructions():
    signature = Rag(["question"], "answer", "Answer in one word.").predict.signature
    assert list(signature.input_fields) == ["passages", "question"]
    assert signature.input_fields["passages"].annotation == list[str]
    assert signature.instructions == "Answer in one word."


def test_programs_and_tasks_are_the_files_of_their_folders(tmp_path, monkeypatch):
    assert {"classify", "rag"} <= set(program_names())
    (tmp_path / "echo.py").write_text("from crossover.programs.modules.rag import build\n")
    (tmp_path / "my_task.py").write_text("from crossover.programs.tasks.stdlib_rag import load\n")
    monkeypatch.setattr(crossover.programs.modules, "__path__", [*crossover.programs.modules.__path__, str(tmp_path)])
    monkeypatch.setattr(crossover.programs.tasks, "__path__", [*crossover.programs.tasks.__path__, str(tmp_path)])
    assert isinstance(build("echo"), Rag)
    assert "my_task" in task_names()
    assert builtin_task("my_task").name == "stdlib_rag"


def test_users_program_is_imported_from_its_file(tmp_path):
    (tmp_path / "mine.py").write_text("import dspy\nclass P(dspy.Module):\n    pass\n")
    assert type(build("./mine.py:P", tmp_path)).__name__ == "P"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "clasify",
            "unknown program 'clasify'; did you mean 'classify'? "
            "choose from answer, classify, dialogue, extract, multihop, rag, record, translate or ./file.py:Class",
        ),
        ("./gone.py:P", "./gone.py:P: no file ./gone.py; a relative path starts at the experiment file"),
        ("./mine.py:Pp", "unknown name in ./mine.py 'Pp'; did you mean 'P'? choose from P, Q, boom"),
        ("./mine.py", "'./mine.py' names no object; write ./file.py:name"),
        ("./mine.py:Q", "./mine.py:Q builds a int; it must be a dspy.Module"),
        ("./mine.py:boom", "./mine.py:boom cannot be built: ValueError: no; it is called without arguments"),
        ("./bad.py:P", "./bad.py:P fails to import: NameError: name 'x' is not defined; correct the file"),
    ],
)
def test_program_that_cannot_be_found_says_why(tmp_path, reference, message):
    (tmp_path / "mine.py").write_text("class P: pass\nQ = int\ndef boom(): raise ValueError('no')\n")
    (tmp_path / "bad.py").write_text("x\n")
    with pytest.raises(UserError) as error:
        build(reference, tmp_path)
    assert str(error.value) == message


def test_two_files_of_one_name_do_not_collide(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"value = {value}\n")
    assert [load_object("mine.py:value", base=tmp_path / f) for f in "ab"] == [1, 2]


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "f1"),
    [
        ("The  Cat!", "cat", 1.0, 1.0),
        ("an apple a day", "apple day", 1.0, 1.0),
        ("the cat sat", "cat", 0.0, 2 / 3),
        ("cat cat", "cat", 0.0, 2 / 3),
        ("dog", "cat", 0.0, 0.0),
        ("the", "a", 0.0, 0.0),
        ("", "A", 0.0, 0.0),
        ("a.", "A", 1.0, 1.0),
        ("15", "1.5", 0.0, 0.0),
        ("5", "-5", 0.0, 0.0),
        ("-5.", "\u22125", 1.0, 1.0),
        ("$1,250", "1250", 1.0, 1.0),
        ("35", "3-5", 0.0, 0.0),
        ("5", ".5", 0.0, 0.0),
        ("", "?", 0.0, 0.0),
        ("", "cat", 0.0, 0.0),
    ],
)
def test_exact_match_and_f1_are_those_of_squad_but_for_numbers_and_articles_alone(predicted, gold, exact, f1):
    assert exact_match(predicted, gold) == exact
    assert token_f1(predicted, gold) == pytest.approx(f1)


def test_normalise_drops_case_punctuation_articles_and_spaces():
    assert normalise("  The U.S.\tof an   A-Team ") == "us of ateam"


@pytest.mark.parametrize("name", sorted({*metric_names()} - {"chrf", "numeric_match"}))
def test_metric_takes_the_best_of_several_gold_values(name):
    gold = dspy.Example(answer=["one", "two"])
    metric = metric_for(name, "answer")
    assert [metric(gold, dspy.Prediction(answer=a)) for a in ("two", "three")] == [1.0, 0.0]


def test_label_accuracy_is_strict_but_for_space_around():
    metric = metric_for("label_accuracy", "label")
    gold = dspy.Example(label="card_arrival")
    assert [metric(gold, dspy.Prediction(label=v)) for v in (" card_arrival\n", "Card_arrival")] == [1.0, 0.0]


def test_metric_raises_when_the_answer_has_not_its_field():
    metric, gold = metric_for("exact_match", "answer"), dspy.Example(answer="x")
    assert metric(gold, dspy.Prediction(answer=None)) == 0.0
    with pytest.raises(KeyError):
        metric(gold, dspy.Prediction(other="x"))


@pytest.mark.parametrize("signature", ["gold, pred", "gold, pred, trace=None", "*args"])
def test_users_metric_gets_the_arguments_it_takes(tmp_path, signature):
    file = tmp_path / "mine.py"
    body = "args[1].a == args[0].a" if "*" in signature else "pred.a == gold.a"
    file.write_text(f"def m({signature}):\n    return {body}\n")
    metric = metric_for(f"{file}:m", "a")
    assert metric(dspy.Example(a="1"), dspy.Prediction(a="1"), None, "predict", None) == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "exactmatch",
            "unknown metric 'exactmatch'; did you mean 'exact_match'? "
            "choose from exact_match, token_f1, accuracy, label_accuracy, rouge_l, bleu, chrf, ter, numeric_match, "
            "entity_f1, field_accuracy, exact_record, attribute_f1 or ./file.py:function",
        ),
        ("m.py:one", "m.py:one takes 1 arguments; a metric takes at least gold and prediction"),
        ("m.py:two", "m.py:two is a int; a metric is a function of gold and prediction"),
    ],
)
def test_metric_that_cannot_serve_says_why(tmp_path, name, message):
    (tmp_path / "m.py").write_text("def one(gold): return 1.0\ntwo = 2\n")
    with pytest.raises(UserError) as error:
        metric_for(name, "answer", base=tmp_path)
    assert str(error.value) == message


def bm25(*texts: str) -> Bm25:
    retriever = Bm25()
    retriever.index([Passage(str(n), text) for n, text in enumerate(texts)])
    return retriever


def test_bm25_finds_the_nearest_first_and_clamps_k():
    hits = bm25("cats purr", "dogs bark loudly", "fish swim")
    ((first, score), (_, second), *rest) = hits.search(["why do dogs bark"], 10)[0]
    assert (first, len(rest)) == ("1", 1)
    assert score > second == 0.0


def test_bm25_searches_the_title_too():
    retriever = Bm25()
    retriever.index([Passage("a", "some words"), Passage("b", "some words", title="Kenya")])
    assert retriever.search(["Kenya"], 1)[0][0][0] == "b"


def test_bm25_keeps_the_order_of_the_corpus_among_equals():
    retriever = bm25("red fox", "blue sky", "red fox", "red fox")
    assert [i for i, _ in retriever.search(["red fox"], 3)[0]] == ["0", "2", "3"]


@pytest.mark.parametrize("question", ["", "the of and", "zyzzyva", "!?"])
def test_bm25_survives_a_question_without_known_words(question):
    none = [("0", 0.0)] if any(map(str.isalnum, question)) else []
    assert bm25("cats purr", "dogs bark").search([question, "dogs"], 1) == [
        none,
        bm25("cats purr", "dogs bark").search(["dogs"], 1)[0],
    ]


@pytest.mark.parametrize(("texts", "found"), [((), []), (("the", "!"), [("0", 0.0)])])
def test_bm25_survives_a_corpus_without_words(texts, found):
    assert bm25(*texts).search(["dogs"], 1) == [found]


def test_fold_ignores_case_punctuation_and_space():
    assert fold(" How do I  locate my card?") == fold("how do I locate: MY card") == "how do i locate my card"
    assert fold("?!") == "?!"


def test_split_keeps_groups_together_and_depends_on_the_seed():
    rows = [f"{n % 100} {n}" for n in range(400)]
    shares = {"test": 0.2, "train": 0.8}
    splits = split_by_hash(rows, group=lambda r: r.split()[0], shares=shares)
    assert not {r.split()[0] for r in splits["test"]} & {r.split()[0] for r in splits["train"]}
    assert 40 <= len(splits["test"]) <= 120
    assert splits != split_by_hash(rows, group=lambda r: r.split()[0], shares=shares, seed=1)


def test_mask_hides_whole_words_in_any_case():
    assert mask("Copy copytree(src) as COPYTREE_x", {"copytree"}) == "Copy ___(src) as ____x"


def test_harvest_is_not_touched_by_what_others_patch_into_the_standard_library(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path))
    code = (
        "import logging\ndef shout(self):\n  'Say a thing very loudly.'\nlogging.Logger.shout = shout\n"
        "from crossover.programs.tasks.stdlib.docstrings import harvest; print(*(i.name for i in harvest()))"
    )
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert "logging.Logger.shout" not in names
    assert {"shutil.copytree", "os.path.join", "struct.pack", "random.choice", "os.rename"} <= set(names)
    harvest.cache_clear()
    whole = harvest()
    assert names == [i.name for i in whole]
    (file,) = tmp_path.iterdir()
    for damaged in ("[{", ""):
        file.write_text(damaged)
        harvest.cache_clear()
        assert harvest() == whole


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_task_has_no_problem(name):
    task = builtin_task(name)
    assert validate(task) == []
    assert len(task.train) >= 400
    assert len(task.val) >= 50
    assert len(task.test) >= 120


@pytest.mark.parametrize("name", BUILTIN)
def test_near_duplicates_of_a_builtin_task_stay_on_one_side(name):
    task = builtin_task(name)
    train, val, test = ({opening(e[task.inputs[0]]) for e in split} for split in task.splits().values())
    assert not (train | val) & test
    assert not train & val


def test_builtin_tasks_are_the_same_in_every_process():
    code = "from crossover.programs.load import builtin_task\n"
    code += f"print(*(builtin_task(name).split_sha256() for name in {BUILTIN}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == [builtin_task(name).split_sha256() for name in BUILTIN]


def test_stdlib_module_has_24_labels_and_hides_them_in_the_text():
    task = builtin_task("stdlib_module")
    assert [len({e.label for e in split}) for split in (task.train, task.test)] == [24, 24]
    for e in task.test:
        assert mask(e.text, {e.label}) == e.text


def test_stdlib_module_can_be_told_from_its_neighbours():
    task = builtin_task("stdlib_module")
    retriever = Bm25()
    retriever.index([Passage(e.label, e.text) for e in task.train])
    hits = retriever.search([e.text for e in task.test], 1)
    assert sum(hit[0][0] == e.label for hit, e in zip(hits, task.test, strict=True)) >= 0.45 * len(task.test)


def test_stdlib_rag_finds_passages_that_hold_the_answers():
    task = builtin_task("stdlib_rag")
    retriever = Bm25()
    retriever.index(task.corpus)
    hits = retriever.search([e.question for e in task.test], 3)
    recall = sum(e.gold[0] in dict(hit) for hit, e in zip(hits, task.test, strict=True)) / len(task.test)
    assert 0.8 <= recall < 1.0
    texts = {p.id: p.text for p in task.corpus}
    assert all(texts[e.gold[0]].startswith(e.answer.rstrip(".")) for e in task.test)
