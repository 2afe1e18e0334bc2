"""Models behind a vLLM server: token ids go there, adapters are loaded by name, and a server that is started ends."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import llguidance
import numpy as np
import psutil
import pytest
import tiny
import torch
from dspy import lm15
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from openings import write_openings
from peft import LoraConfig, get_peft_model
from processes import UNTRACKED, ended, free_port, start, wait_for
from transformers import AutoTokenizer, LlamaForCausalLM
from vllm_server import Server, install, vllm_server

from crossover.eval.cli.main import main
from crossover.finetune.training.options import check_local
from crossover.models import vllm_server as vllm_servers
from crossover.models.constrained import Grammars, replayed
from crossover.models.engine import states_of
from crossover.models.errors import UserError
from crossover.models.first_token import timing_first_token
from crossover.models.grammars import CHOICES, RULES
from crossover.models.load import LoadedModel, load_model, model_sha256, tuned_lm
from crossover.models.prompt import engine_of
from crossover.models.spec import ModelSpec

BY_VLLM = f"vllm:{tiny.FOLDER}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Serve the small model as vLLM would."""
    with vllm_server(tiny.FOLDER) as served:
        yield served


def joined(server: Server, **settings: Any) -> LoadedModel:
    return load_model(ModelSpec(BY_VLLM, api_base=server.url, max_tokens=12, **settings))


def local(**settings: Any) -> LoadedModel:
    return load_model(ModelSpec(tiny.NAME, max_tokens=12, **settings))


def adapter(folder: Path, rank: int = 4, **settings: Any) -> Path:
    torch.manual_seed(1)
    lora = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    get_peft_model(LlamaForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float32), lora).save_pretrained(folder)
    return folder


def answers(model: LoadedModel, intents: list[dspy.Example], lm: dspy.LM | None = None) -> list[str]:
    """Return the answers to every question, with the others as demonstrations, asked by several threads."""
    labels = ", ".join(repr(x) for x in dict.fromkeys(e.label for e in intents))
    program = dspy.Predict(dspy.Signature(f"text -> label: Literal[{labels}]", "Name the intent."))
    program.demos = intents[12:]

    def ask(example: dspy.Example) -> str:
        with dspy.context(lm=lm or model.lm, adapter=model.prompt_format, disable_history=True):
            try:
                return str(program(text=example.text).label)
            except dspy.utils.exceptions.AdapterParseError as e:
                return f"unparsed: {e.lm_response}"

    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(ask, intents[:12]))


@pytest.mark.parametrize("decode", ["free", "labels"])
@pytest.mark.parametrize("prompt_format", ["plain", "json", "chat"])
def test_the_same_token_ids_get_the_same_answers(
    server: Server, intents: list[dspy.Example], prompt_format: str, decode: str
) -> None:
    settings = {"prompt_format": prompt_format, "decode": decode}
    here, there, before = local(**settings), joined(server, **settings), len(server.bodies)
    assert (there.sha256, there.local, there.context) == (here.sha256, True, here.context)
    assert model_sha256(there.spec) == here.sha256
    assert answers(there, intents) == answers(here, intents)
    sent = server.bodies[before:]
    assert len(sent) == 12
    assert {bool(b.get("structured_outputs")) for b in sent} == {decode == "labels"}
    for body in sent:
        # No default of the model's generation_config may decide.
        assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (0.0, 1.0, 0, 1.0)
        assert all(isinstance(i, int) for i in body["prompt"])


def test_an_adapter_answers_by_its_name(server: Server, intents: list[dspy.Example], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "tuned")
    settings = {"prompt_format": "plain", "decode": "free"}
    here, there = local(**settings), joined(server, **settings)
    tuned_here, tuned_there = tuned_lm(here.lm, folder), tuned_lm(there.lm, folder)
    name = tuned_there.model.partition("+")[2]
    assert name == tuned_here.model.partition("+")[2]
    got = answers(there, intents, tuned_there)
    assert got == answers(here, intents, tuned_here)
    assert got != answers(here, intents)
    assert {b["model"] for b in server.bodies[-12:]} == {name}
    assert tuned_lm(there.lm, folder).model == tuned_there.model, "a second load of the same weights"
    server.adapters[name] = (server.adapters[name][0], "/gone")
    assert tuned_lm(there.lm, folder).model == tuned_there.model
    assert server.adapters[name][1] == str(folder.resolve()), "the name stood for a folder that may be gone"
    ids = engine_of(here.lm).encode([{"role": "user", "content": "text: where is my refund"}])
    for lm_here, lm_there in ((here.lm, there.lm), (tuned_here, tuned_there)):
        of = lm_here.model.partition("+")[2]
        told, expected = (engine_of(lm).token_logprobs(ids, 5, of) for lm in (lm_there, lm_here))
        assert torch.allclose(told, expected, atol=1e-4)


def test_what_a_server_cannot_serve_is_refused(server: Server, tmp_path: Path) -> None:
    lm = joined(server).lm
    with pytest.raises(UserError, match=r"rank 32 is greater than max_lora_rank 16.*--max-lora-rank RANK"):
        tuned_lm(lm, adapter(tmp_path / "large", rank=32))
    with pytest.raises(UserError, match="vLLM serves no DoRA adapter"):
        tuned_lm(lm, adapter(tmp_path / "dora", use_dora=True))
    with pytest.raises(UserError, match="holds whole weights; use `local:`"):
        tuned_lm(lm, tiny.FOLDER)


def test_tokens_come_as_a_stream_and_states_are_kept_apart(server: Server) -> None:
    lm = joined(server, prompt_format="plain", decode="free").lm
    said = " ".join(f"word {n}" for n in range(200))
    request = lm15.Request(
        model=lm.model, messages=(lm15.Message.user(f"text: {said}"),), config=lm15.Config(max_tokens=12)
    )
    whole = engine_of(lm).complete(request)
    timed, timer = timing_first_token(lm)
    with states_of(lm, "one"):
        first = timed.engine.complete(request)
        again = timed.engine.complete(request)
    with states_of(lm, "another"):
        other = timed.engine.complete(request)
    assert timer.began is not None
    assert first.message.text == again.message.text == other.message.text == whole.message.text
    assert first.usage.input_tokens == whole.usage.input_tokens > 400
    assert [bool(r.usage.cache_read_tokens) for r in (first, again, other)] == [False, True, False]
    assert first.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.parametrize("prompt_format", ["plain", "json", "chat"])
def test_forced_tokens_are_not_counted(server: Server, intents: list[dspy.Example], prompt_format: str) -> None:
    for max_tokens in (1, 2, 3):
        settings = {"prompt_format": prompt_format, "decode": "labels"}
        here = load_model(ModelSpec(tiny.NAME, max_tokens=max_tokens, **settings))
        there = load_model(ModelSpec(BY_VLLM, api_base=server.url, max_tokens=max_tokens, **settings))
        assert answers(there, intents[:4] + intents[12:20]) == answers(here, intents[:4] + intents[12:20])


def test_a_grammar_says_every_end_of_an_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER)
    first, second = int(tokenizer.eos_token_id), 5
    grammars = Grammars(tokenizer, len(tokenizer), [first, second], at_line=False)
    schema = {RULES: "answer: value_0", CHOICES: {"value_0": ["card", "card arrival"]}}
    grammar = grammars.compiled(schema)
    # The server's tokenizer knows one end alone.
    matcher = LLMatcher(from_tokenizer(tokenizer), llguidance.grammar_from("grammar", grammar.lark))
    card = tokenizer.encode("card", add_special_tokens=False)
    assert matcher.consume_tokens(card)
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    assert bits[first]
    assert bits[second]
    assert bits.sum() == 3, "two ends, and the rest of the other label"
    assert replayed(grammar, [*card, second], 8) == ([*card, second], True)
    assert replayed(grammar, card, len(card)) == (card, False)


def test_a_brief_context_finds_the_warm_up_alone(server: Server) -> None:
    lm = joined(server, prompt_format="plain", decode="free").lm
    shared = " ".join(f"word {n}" for n in range(100))

    def asked(question: str) -> int:
        message = lm15.Message.user(f"text: {shared} {question * 40}")
        config = lm15.Config(max_tokens=2)
        response = engine_of(lm).complete(lm15.Request(model=lm.model, messages=(message,), config=config))
        return int(response.usage.cache_read_tokens or 0)

    with states_of(lm, "arm"):
        assert asked("first ") == 0
    found = []
    for owner in ("arm", "arm", object()):
        with states_of(lm, owner, briefly=True):
            found.append(asked("second "))
    assert found[0] == found[1] > 100, "a question that was asked before is as new as any"
    assert found[2] == 0


def test_an_answer_that_the_server_breaks_off_is_none(server: Server) -> None:
    lm = joined(server, prompt_format="plain", decode="free").lm
    config = lm15.Config(max_tokens=4)
    request = lm15.Request(model=lm.model, messages=(lm15.Message.user("text: a"),), config=config)
    server.shuts_down = True
    try:
        with pytest.raises(UserError, match=r"broke an answer off \(abort\)"):
            engine_of(lm).complete(request)
        with pytest.raises(UserError, match=r"broke an answer off \(None\)"):
            list(engine_of(lm).stream(request))
    finally:
        server.shuts_down = False


def test_samples_of_one_prompt_differ(server: Server) -> None:
    lm = joined(server, prompt_format="plain", decode="free", temperature=1.0).lm
    config = lm15.Config(max_tokens=12, temperature=1.0)
    request = lm15.Request(model=lm.model, messages=(lm15.Message.user("text: a"),), config=config)
    assert len({engine_of(lm).complete(request).message.text for _ in range(6)}) > 1
    assert [b["seed"] for b in server.bodies[-6:]] == list(range(6))


def test_a_server_that_does_not_do_is_one_line(server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny.FOLDER.iterdir():
        (other / file.name).symlink_to(file)
    with pytest.raises(UserError, match=r"serves .*tiny_model, and not .*other"):
        load_model(ModelSpec(f"vllm:{other}", api_base=server.url))
    with pytest.raises(UserError, match=r"refused: Not Found; check `api_key`, and that the address ends in /v1"):
        load_model(ModelSpec(BY_VLLM, api_base=server.url.removesuffix("/v1")))
    with vllm_server(tiny.FOLDER, lora=False) as bare:
        lm = joined(bare, prompt_format="plain").lm
        with pytest.raises(UserError, match=r"loads no adapters; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
            check_local(lm, "sft")
        lm.model = f"{lm.model}+gone"
        request = lm15.Request(model=lm.model, messages=(lm15.Message.user("text: a"),), config=lm15.Config())
        with pytest.raises(UserError, match="The model `gone` does not exist"):
            engine_of(lm).complete(request)
    with pytest.raises(UserError, match=r"does not answer \(NewConnectionError\)"):
        load_model(ModelSpec(BY_VLLM, api_base=f"http://127.0.0.1:{free_port()}/v1"))


def test_weights_of_the_same_name_elsewhere_are_told(server: Server, tmp_path: Path) -> None:
    other = tmp_path / tiny.FOLDER.name
    other.symlink_to(tiny.FOLDER)
    assert joined(server).lm.engine.remarks == engine_of(joined(server).lm).remarks
    copy = tmp_path / "copies" / tiny.FOLDER.name
    shutil.copytree(tiny.FOLDER, copy)
    engines = [engine_of(load_model(ModelSpec(f"vllm:{f}", api_base=server.url)).lm) for f in (other, copy)]
    told = [any("whose weights were not compared" in r for r in e.remarks) for e in engines]
    assert told == [False, True]


def by_vllm(file: Path, **settings: object) -> Path:
    """Let an experiment ask its model by vLLM."""
    file.write_text(file.read_text().replace(tiny.model(max_tokens=8), json.dumps({"name": BY_VLLM} | settings)))
    return file


def test_a_run_starts_a_server_and_ends_it(tmp_path: Path) -> None:
    methods = "[zero_shot, few_shot: {demos: 4}, sft: {epochs: 1, rank: 4}]"
    settings = {"prompt_format": "plain", "decode": "free", "max_tokens": 8}
    scores, notes = {}, {}
    for kind in ("here", "there"):
        (tmp_path / kind).mkdir()
        file = write_openings(tmp_path / kind, methods, test=20)
        if kind == "there":
            by_vllm(file, **settings)
        out = tmp_path / f"{kind}-run"
        environment = {"PATH": install(tmp_path / "bin"), "CROSSOVER_CACHE": str(tmp_path / "cache")}
        run = start(tmp_path / kind, out, "run", str(file), *UNTRACKED, "--json", "--no-progress", **environment)
        assert ended(run) == 0, Path(f"{out}.err").read_text()
        report = json.loads(Path(f"{out}.out").read_text())
        scores[kind] = {a["method"]: (a["score"]["mean"], a["score"]["n"]) for a in report["arms"]}
        files = (tmp_path / kind / "mlruns" / "cells").glob("*/result.json")
        notes[kind] = {json.loads(f.read_text())["notes"].get("served_by") for f in files}
    assert scores["there"] == scores["here"]
    assert notes == {"here": {None}, "there": {"vLLM 0.11.0"}}
    assert len(scores["there"]) == 3
    assert "starting vLLM for" in Path(f"{tmp_path}/there-run.err").read_text()
    (log,) = (tmp_path / "cache" / "vllm").glob("*.log")
    assert "INFO: serving" in log.read_text()
    wait_for(lambda: not serving(log))


def test_a_server_is_started_again_and_keeps_its_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", install(tmp_path / "bin"))
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_API_KEY", "a key of the user's own server")
    try:
        lm = load_model(ModelSpec(BY_VLLM, prompt_format="plain", decode="free")).lm
        assert engine_of(lm).served_by == "vLLM 0.11.0"
        tuned = tuned_lm(lm, adapter(tmp_path / "tuned"))
        shutil.rmtree(tmp_path / "tuned")
        request = lm15.Request(tuned.model, (lm15.Message.user("text: a"),), config=lm15.Config(max_tokens=4))
        assert engine_of(tuned).complete(request).message.text
        (server,) = vllm_servers._started.values()
        assert server.rank == 64
        server.process.kill()
        server.process.wait()
        vllm_servers.make_room([])
        again = load_model(ModelSpec(BY_VLLM, prompt_format="plain", decode="free")).lm
        request = lm15.Request(again.model, (lm15.Message.user("text: a"),), config=lm15.Config(max_tokens=4))
        assert engine_of(again).complete(request).message.text
        with pytest.raises(UserError, match="loads no adapters"):
            check_local(again, "sft")
        # Another run of this process trains: its server has room.
        vllm_servers.make_room([4, 20])
        with_room = load_model(ModelSpec(BY_VLLM, prompt_format="plain", decode="free")).lm
        check_local(with_room, "sft")
        assert [s.rank for s in vllm_servers._started.values()] == [32]
    finally:
        vllm_servers._end_all()
        vllm_servers.make_room([64])
    assert not any(str(tiny.FOLDER) in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


def serving(log: Path) -> bool:
    """Return whether the server of that log runs, or the process that watches it."""
    port = log.stem.partition("-")[2]
    return any(port in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


def test_a_server_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    file = by_vllm(write_openings(tmp_path, "[sft: {epochs: 200, rank: 4}]"), prompt_format="plain", decode="free")
    environment = {"PATH": install(tmp_path / "bin"), "CROSSOVER_CACHE": str(tmp_path / "cache")}
    run = start(tmp_path, tmp_path / "run", "run", str(file), *UNTRACKED, "--no-progress", **environment)
    wait_for(lambda: any(serving(log) for log in (tmp_path / "cache" / "vllm").glob("*.log")))
    assert run.pid is not None
    os.kill(run.pid, signal.SIGKILL)
    ended(run)
    (log,) = (tmp_path / "cache" / "vllm").glob("*.log")
    wait_for(lambda: not serving(log))


def test_a_finished_run_is_reported_and_asked_where_its_server_is(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"prompt_format": "plain", "decode": "free", "max_tokens": 8, "api_key": "${HOUSE_KEY}"}
    monkeypatch.setenv("HOUSE_KEY", "key-of-the-house")
    store, methods = tmp_path / "mlruns", "[zero_shot, sft: {epochs: 1, rank: 4}]"
    with vllm_server(tiny.FOLDER, key="key-of-the-house") as locked:
        file = by_vllm(write_openings(tmp_path, methods, test=12), api_base=locked.url, **settings)
        assert main(["run", str(file), "--store", str(store), *UNTRACKED, "--no-progress", "--json"]) == 0
        arms = {a["method"]: a["cells"] for a in json.loads(capsys.readouterr().out)["arms"]}
        (cell,) = next(keys for method, keys in arms.items() if method.startswith("sft"))
        locked.adapters.clear()
        assert main(["load", cell, "--store", str(store), "--concurrency", "4", "--requests", "8"]) == 0
        assert "8 requests" in capsys.readouterr().err
        assert [Path(path).is_relative_to(store) for _, path in locked.adapters.values()] == [True]
    assert main(["report", str(file), "--store", str(store)]) == 0
    assert "sft" in capsys.readouterr().out
    assert not any(b"key-of-the-house" in f.read_bytes() for f in store.rglob("*") if f.is_file())


def test_a_server_that_ends_before_it_is_ready_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").write_text(f"#!/bin/sh\ncat {tmp_path}/log\nexit 1\n")
    (tmp_path / "log").write_text(
        "(EngineCore pid=7) ValueError: no GPU is here\n(APIServer pid=1) Traceback (most recent call last):\n"
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    (tmp_path / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"ended before it was ready: ValueError: no GPU is here; see .*\.log"):
            load_model(ModelSpec(BY_VLLM))
    assert len(list((tmp_path / "cache" / "vllm").glob("*.log"))) == 1, "tried once a run"
    vllm_servers.make_room([16])
    (tmp_path / "log").write_text("")
    with pytest.raises(UserError, match="ended before it was ready: silently"):
        load_model(ModelSpec(BY_VLLM))


def test_validate_names_what_vllm_does_not_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unserved = "head, sft: {adapter: dora}, sft: {adapter: none}, chain: [sft, dpo]"
    file = by_vllm(write_openings(tmp_path, f"[{unserved}, sft]"), api_base="http://127.0.0.1:9/v1")
    assert main(["validate", str(file)]) == 0
    said = capsys.readouterr().err
    assert "is served by vLLM, which loads LoRA adapters, but no heads" in said
    assert "left out: head, sft adapter=dora, sft adapter=none, sft > dpo; all else is compared" in said
    assert main(["validate", str(file), "--set", f"methods=[{unserved}]"]) == 2
    assert "; add `smollm2` or a `local:` model, or a method that adapts prompts" in capsys.readouterr().err
    file = by_vllm(write_openings(tmp_path, "[zero_shot]"))
    assert main(["validate", str(file)]) == 2
    assert "vLLM is not installed here; `pip install vllm`" in capsys.readouterr().err
    monkeypatch.setenv("PATH", install(tmp_path / "bin"))
    assert main(["validate", str(file), "--set", "teacher='vllm:smollm2'"]) == 2
    assert "each needs a vLLM server" in capsys.readouterr().err
    file.write_text(file.read_text().replace(BY_VLLM, "vllm:house/model"))
    assert main(["validate", str(file)]) == 2
    assert "or ask its server alone by `hosted_vllm/house/model`" in capsys.readouterr().err
