"""Serve a Hugging Face causal language model in this process, as a DSPy engine, with LoRA adapters on one base."""

import hashlib
import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from dspy import lm15
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

FALLBACK_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{{ '\n=> ' if m['role'] == 'user' else '\n\n' }}{% endfor %}"
)
"""For base models without a chat template: the answer follows an arrow and ends with the line."""

BASE = ""
"""Adapter name of the untouched base."""


def folder_sha256(folder: Path) -> str:
    """Return the hash of a model's or adapter's weights, configuration, tokenizer and template files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model"):
            digest.update(file.name.encode())
            with file.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def safe_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages with the model's control tokens broken up, so that data can never end a turn."""
    controls = [t for t in tokenizer.all_special_tokens if len(t) > 1]
    cleaned = []
    for m in messages:
        content = m["content"]
        for t in controls:
            content = content.replace(t, f"{t[0]} {t[1:]}")
        cleaned.append({"role": m["role"], "content": content})
    return cleaned


@dataclass
class _Job:
    """One request on its way through the worker."""

    ids: list[int]
    adapter: str
    max_tokens: int
    temperature: float
    seed: int | None
    answer: "Future[tuple[list[int], str]]" = field(default_factory=Future)


class LocalEngine:
    """Answer DSPy requests with a loaded model; requests of many threads are answered in batches.

    One worker thread owns the model, so that adapters can be switched without a race.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int = 16_384,
        in_training: bool = False,
    ) -> None:
        """Serve `model` on the device it is on; `batch_tokens` bounds padded tokens a batch.

        A model `in_training` is served as it is, its new adapter included: switching would freeze what is trained.
        """
        self.in_training = in_training
        self.model: Any = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.stop_at_line = tokenizer.chat_template is None
        if self.stop_at_line:
            tokenizer.chat_template = FALLBACK_TEMPLATE
        self.context = int(model.config.max_position_embeddings)
        self.folder = Path(".")
        self.sha256 = ""
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._coming = 0
        self._worker: threading.Thread | None = None

    @classmethod
    def load(cls, folder: str | Path, *, trust_remote_code: bool = False) -> "LocalEngine":
        """Load weights (safetensors only) and tokenizer from a folder or a hub id.

        float32 on the CPU, bfloat16 on a GPU.
        """
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
        engine = cls(model.to(device).eval(), tokenizer)
        engine.folder = Path(folder) if Path(folder).is_dir() else Path(str(model.config._name_or_path))
        engine.sha256 = folder_sha256(Path(folder)) if Path(folder).is_dir() else str(model.config._commit_hash)
        return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> "LocalEngine":
        """Return itself: DSPy's optimizers copy programs, and must not copy the model with them."""
        return self

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the token ids of the prompt, up to where the answer begins."""
        with self._lock:
            ids = self.tokenizer.apply_chat_template(
                safe_messages(self.tokenizer, messages), add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
        return list(ids)

    def add_adapter(self, folder: Path) -> str:
        """Attach a LoRA adapter to the base and return its name, which holds the hash of its weights."""
        from peft import PeftModel

        name = folder_sha256(folder)[:12]
        with self._lock, warnings.catch_warnings():
            # PEFT still reads a property that transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            if not isinstance(self.model, PeftModel):
                self.model = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
            elif name not in self.model.peft_config:
                self.model.load_adapter(str(folder), adapter_name=name)
            self.model.eval()
        return name

    def logits(self, ids: Sequence[int], adapter: str = BASE) -> torch.Tensor:
        """Return the float32 logits after a prompt, shape (vocabulary,)."""
        with self._lock, torch.inference_mode(), self._using(adapter):
            out: torch.Tensor = self.model(torch.tensor([list(ids)], device=self.model.device)).logits
            return out[0, -1].float().cpu()

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request; blocks until the batch it travels in is done."""
        with self._lock:
            self._coming += 1
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, daemon=True, name="local-model")
                self._worker.start()
        try:
            job = self._job(request)
        except BaseException:
            with self._lock:
                self._coming -= 1
            raise
        self._jobs.put(job)
        new, reason = job.answer.result()
        # DSPy takes an empty text for a broken call; a model that says nothing has answered, and wrongly.
        text = self.tokenizer.decode(new, skip_special_tokens=True).strip() or " "
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="length" if reason == "length" else "stop",
            usage=lm15.Usage(input_tokens=len(job.ids), output_tokens=len(new), total_tokens=len(job.ids) + len(new)),
        )

    def _job(self, request: lm15.Request) -> _Job:
        system = (
            request.system if isinstance(request.system, str) else "".join(str(p.text) for p in request.system or ())
        )
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": str(m.role), "content": str(m.text)} for m in request.messages]
        ids = self.encode(messages)
        max_tokens = int(request.config.max_tokens or 64)
        if len(ids) + max_tokens > self.context:
            raise lm15.ContextLengthError(
                f"prompt of {len(ids)} tokens and {max_tokens} for the answer exceed the model's context "
                f"of {self.context}"
            )
        _, _, adapter = request.model.partition("+")
        return _Job(ids, adapter, max_tokens, float(request.config.temperature or 0.0), request.config.seed)

    def close(self) -> None:
        """Stop the worker; a later request starts a new one."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            self._jobs.put(None)
            worker.join()

    def _work(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs = [first]
            with self._lock:
                self._coming -= 1
            # Wait only for requests that are already being tokenized: a lone request is never delayed.
            while self._coming > 0 or not self._jobs.empty():
                try:
                    job = self._jobs.get(timeout=0.05)
                except queue.Empty:
                    break
                if job is None:
                    self._jobs.put(None)
                    break
                jobs.append(job)
                with self._lock:
                    self._coming -= 1
            for batch in self._batches(jobs):
                try:
                    self._generate(batch)
                except Exception as e:
                    for job in batch:
                        if not job.answer.done():
                            job.answer.set_exception(e)

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Split into batches of one adapter and one sampling setting, of similar length, within the token bound."""
        jobs.sort(key=lambda j: (j.adapter, j.temperature, j.seed or 0, len(j.ids)))
        batch: list[_Job] = []
        for j in jobs:
            same = batch and (j.adapter, j.temperature, j.seed) == (
                batch[0].adapter,
                batch[0].temperature,
                batch[0].seed,
            )
            if batch and (not same or (len(batch) + 1) * (len(j.ids) + j.max_tokens) > self.batch_tokens):
                yield batch
                batch = []
            batch.append(j)
        yield batch

    def _using(self, adapter: str) -> Any:
        """Return a context in which the model runs with the adapter, or bare."""
        from contextlib import nullcontext

        from peft import PeftModel

        if self.in_training:
            return nullcontext()
        if not isinstance(self.model, PeftModel):
            if adapter:
                raise ValueError(f"adapter {adapter} is not loaded on this model")
            return nullcontext()
        if not adapter:
            return self.model.disable_adapter()
        self.model.set_adapter(adapter, inference_mode=True)
        return nullcontext()

    def _generate(self, batch: list[_Job]) -> None:
        longest = max(len(j.ids) for j in batch)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = torch.full((len(batch), longest), pad, device=self.model.device)
        mask = torch.zeros_like(ids)
        for r, j in enumerate(batch):
            ids[r, longest - len(j.ids) :] = torch.tensor(j.ids)
            mask[r, longest - len(j.ids) :] = 1
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if batch[0].temperature > 0:
            torch.manual_seed(batch[0].seed or 0)
            options = {"do_sample": True, "temperature": batch[0].temperature}
        if self.stop_at_line:
            options |= {"stop_strings": ["\n"], "tokenizer": self.tokenizer}
        with self._lock, torch.inference_mode(), self._using(batch[0].adapter):
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(j.max_tokens for j in batch),
                pad_token_id=pad,
                **options,
            )
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        for j, row in zip(batch, out[:, longest:].tolist(), strict=True):
            stop = next((k for k, t in enumerate(row) if t in ends), None)
            new = row[: min(j.max_tokens, len(row) if stop is None else stop + 1)]
            reason = "stop" if new and (new[-1] in ends or self.stop_at_line) else "length"
            j.answer.set_result((new, reason))


def accelerator() -> str:
    """Return the name of the device that local models run on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return "Apple GPU (mps)" if torch.backends.mps.is_available() else "none; models run on the processor"
