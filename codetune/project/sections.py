"""The project: one frozen model per section, the presets, and which values this version lacks. Defaults live here only.

Every key has one line of documentation, which `codetune init` writes beside it. How the file is read, and how its
mistakes are told, is in `file.py`.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo

from codetune.errors import InputError

PROJECT_FILE = "codetune.yaml"
EVALPLUS_NAMES = ("humaneval", "mbpp")
BENCHMARK_NAMES = (*EVALPLUS_NAMES, "demo")  # any other benchmark is a path

ChatFormat = Literal["codellama", "codegemma", "deepseek", "starcoder2", "codeqwen", "llama3", "tokenizer"]
Strategy = Literal["ifd_cluster", "parametric", "ifd", "perplexity", "kcenter", "length", "random", "all"]
PadMode = Literal["max_length", "dynamic_pad", "dynamic_pack", "paper_pack"]
Method = Literal["full", "lora", "qlora"]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Chance = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Dataset(Section):
    path: Text = Field(
        "ise-uiuc/Magicoder-OSS-Instruct-75K",
        description="hub id, or .json(.gz) / .jsonl(.gz) / .parquet, a glob, or a directory",
    )
    split: Text = Field("train", description="split of a hub data set; local files are taken whole")
    instruction: Text = Field("problem", description="column of the instruction; Alpaca's `input` is appended to it")
    response: Text = Field("solution", description="column of the answer; a `messages` column (chat) needs neither")


class Model(Section):
    path: Text = Field(
        "deepseek-ai/deepseek-coder-6.7b-base", description="hub id or directory of the base model (safetensors)"
    )
    chat_format: ChatFormat = Field("deepseek", description="how turns are written; `tokenizer` for its own template")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "bfloat16", description="arithmetic of the model; `auto` is what its configuration says"
    )
    attention: Literal["auto", "flash", "varlen", "sdpa", "eager"] = Field(
        "auto", description="auto takes what fits; flash (flash-attn) and varlen (torch's own) need a GPU"
    )


class Scoring(Section):
    model: Text | None = Field(None, description="null is model.path; a smaller model is allowed")
    max_length: Annotated[int, Field(ge=2)] = Field(2048, description="tokens of prompt and answer; the rest is cut")
    tokens_per_batch: Count | Literal["auto"] = Field("auto", description="padded tokens of one forward pass")
    prompt: Text = Field(
        "Question:\n{instruction}\n\nAnswer:\n", description="what stands before the answer; not the chat format"
    )


class Embedding(Section):
    model: Text = Field(
        "sentence-transformers/all-mpnet-base-v2",
        description="a sentence-transformers name or path, or `hashing` (offline: hashed n-grams, truncated SVD)",
    )
    batch_size: Count = Field(512, description="instructions encoded at once")


class Selection(Section):
    strategy: Strategy = Field("ifd_cluster", description="ifd_cluster (the paper's), or a control: random, all")
    clusters: Count = Field(10, description="K of K-means")
    ratio: Share = Field(0.4, description="share of the rows to take, floor(n * ratio) of every cluster")
    ratio_of: Literal["eligible", "all"] = Field(
        "eligible", description="of the rows left in the cluster after the cut (the paper), or of all its rows"
    )
    max_ifd: Annotated[float, Field(gt=0)] = Field(1.0, description="rows at or above are dropped as mismatched")


class LoraSettings(Section):
    r: Count = Field(8, description="rank")
    alpha: Count = Field(16, description="scale is alpha / r")
    dropout: Chance = Field(0.1, description="on the adapter's input")
    target_modules: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        "all-linear", description="`all-linear`, or names of modules"
    )


class Quantization(Section):
    bits: Literal[4, 8] = Field(4, description="bits of a base weight")
    type: Literal["nf4", "fp4"] = Field("nf4", description="number format of 4 bits")
    double: bool = Field(True, description="quantise the scales as well")


class Training(Section):
    method: Method = Field("full", description="what is trained: all weights, or adapters")
    pad_mode: PadMode = Field(
        "dynamic_pack",
        description="max_length, dynamic_pad, dynamic_pack (no padding), or paper_pack (the paper's own, padded)",
    )
    max_length: Annotated[int, Field(ge=2)] = Field(2048, description="tokens of a sample")
    too_long: Literal["truncate", "drop"] = Field("truncate", description="what becomes of longer samples; counted")
    epochs: Count = Field(3, description="passes over the selection")
    max_steps: Count | None = Field(None, description="stop after so many optimizer steps; null is all epochs")
    global_batch_size: Count | None = Field(
        None, description="samples of an optimizer step; null is per device x accumulation x processes"
    )
    per_device_batch_size: Count = Field(16, description="samples of a micro-batch")
    gradient_accumulation_steps: Count = Field(4, description="micro-batches of a step on one process")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5.0e-5, description="its peak")
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="course of the learning rate"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(15, description="steps from 0 to the peak")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled, as in AdamW")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradients are clipped to this norm")
    optimizer: Literal["adamw_torch_fused", "adamw_torch", "adafactor"] = Field(
        "adamw_torch_fused", description="adamw_torch_fused, adamw_torch or adafactor"
    )
    tf32: bool = Field(True, description="TF32 for float32 products on GPUs that have it")
    gradient_checkpointing: bool = Field(True, description="recompute activations: less memory, more time")
    pack_isolation: bool = Field(
        True, description="packed samples never see each other; false: each sees those before it, as published"
    )
    sort_in_step: bool = Field(
        False, description="cut micro-batches from the step's samples by length; dynamic_pack always deals them so"
    )
    logging_steps: Count = Field(10, description="a line of train/metrics.jsonl every so many steps")
    save_minutes: Annotated[float, Field(gt=0)] | None = Field(15, description="minutes between checkpoints, or null")
    save_steps: Count | None = Field(None, description="optimizer steps between checkpoints, or null")
    keep_checkpoints: Count = Field(2, description="older ones are deleted")
    merge: bool = Field(False, description="save the adapters merged into a whole model (and beside it as they are)")
    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="metrics go there as well: [tensorboard], [wandb] or both"
    )
    lora: LoraSettings = LoraSettings()
    quantization: Quantization = Quantization()


class Generation(Section):
    prompt: Literal["auto", "completion", "chat"] = Field(
        "auto", description="auto: chat for a model that codetune trained, completion for `base`"
    )
    max_new_tokens: Count = Field(1024, description="longest completion")
    samples_per_task: Count = Field(1, description="completions of a task")
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="nucleus; read when temperature is above 0")
    batch_size: Count | Literal["auto"] = Field(
        "auto", description="prompts decoded at once; auto: 32, or what fits on a GPU"
    )
    backend: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="what decodes: auto is vllm where it is installed and a GPU is there, else transformers"
    )


class Evaluation(Section):
    benchmarks: Annotated[list[Text], Field(min_length=1)] = Field(
        ["humaneval", "mbpp"], description="humaneval, mbpp, demo, or paths of JSONL files in EvalPlus format"
    )
    sandbox: Literal["auto", "bubblewrap", "namespaces", "landlock", "none"] = Field(
        "auto", description="how generated code is confined: auto is the strongest way that works here, or an error"
    )
    k: Annotated[list[Count], Field(min_length=1)] = Field([1], description="the k of pass@k")


class Launch(Section):
    processes: Count | Literal["auto"] = Field("auto", description="auto is one per GPU, 1 without")
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3"] = Field("auto", description="how they share")
    nodes: Count = Field(1, description="machines")
    offload: Literal["none", "optimizer", "all"] = Field("none", description="what moves to CPU memory")


class Project(Section):
    """A whole project, resolved. `root` is the directory that relative paths start from; `overrides` are the settings
    that came by flag or `--set`, not from the file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "default", description="names the run: letters, digits, dot, dash, underscore"
    )
    output_dir: Text | None = Field(None, description="default runs/<name>; relative paths are relative to this file")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(42, description="of everything random")
    dataset: Dataset = Dataset()
    model: Model = Model()
    score: Scoring = Scoring()
    embed: Embedding = Embedding()
    select: Selection = Selection()
    train: Training = Training()
    generate: Generation = Generation()
    evaluate: Evaluation = Evaluation()
    launch: Launch = Launch()

    _root: Path = PrivateAttr(default_factory=Path.cwd)
    _overrides: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def root(self) -> Path:
        return self._root

    @property
    def overrides(self) -> Mapping[str, Any]:
        return self._overrides

    @property
    def run_dir(self) -> Path:
        return self.root / (self.output_dir or f"runs/{self.name}")

    def locate(self, name: str) -> str:
        """`name` as a path beside the project file, else below the current directory, else unchanged (a hub id)."""
        try:
            for path in (base / Path(name).expanduser() for base in (self.root, Path.cwd())):
                pattern = str(path) if glob.has_magic(name) else ""
                if path.exists() or any(glob.iglob(pattern, recursive=True)):  # noqa: PTH207 - as data/source has it
                    return str(path)
        except (RuntimeError, OSError) as why:  # no such user's home; a name longer than any file's
            raise InputError(f"{name} cannot be a path: {why}. Mend it in the project file") from None
        return name

    def placed(self, root: Path, overrides: Mapping[str, Any]) -> Self:
        copy = self.model_copy()
        copy._root, copy._overrides = root.resolve(), dict(overrides)
        return copy


# Of `train`: what changes where and how fast a step is computed, or what is written down, but not what is learned. An
# unfinished training goes on with other values of these.
FREE_TO_CHANGE = (
    *("per_device_batch_size", "gradient_accumulation_steps", "global_batch_size"),  # their product must stay
    *("gradient_checkpointing", "logging_steps", "save_minutes", "save_steps", "keep_checkpoints", "report_to"),
    "merge",
)

# A feature of the contract that this version lacks: its values are refused, never accepted and ignored.
NOT_IN_THIS_VERSION: Mapping[str, Sequence[object]] = {
    "select.strategy": ("parametric", "ifd", "perplexity", "kcenter", "length"),
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "deepseek-oss": {"name": "deepseek-oss-40"},
    "codellama-evol": {
        "name": "codellama-evol-40",
        "dataset.path": "nickrosh/Evol-Instruct-Code-80k-v1",
        "dataset.instruction": "instruction",
        "dataset.response": "output",
        "model.path": "codellama/CodeLlama-7b-Python-hf",
        "model.chat_format": "codellama",
    },
    "cpu": {
        "name": "cpu-40",
        "dataset.path": "data.jsonl",
        "dataset.instruction": "instruction",
        "dataset.response": "output",
        "model.path": "HuggingFaceTB/SmolLM2-135M",
        "model.chat_format": "codeqwen",
        "model.dtype": "float32",
        "score.max_length": 1024,
        "embed.model": "hashing",
        "train.method": "lora",
        "train.max_length": 1024,
        "train.epochs": 1,
        "train.per_device_batch_size": 4,
        "train.learning_rate": 2.0e-4,
        "train.gradient_checkpointing": False,
        "generate.max_new_tokens": 512,
    },
}


def keys(section: type[BaseModel] = Project, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the project file with a value of its own, dotted, in the file's order."""
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def value_at(project: BaseModel, key: str) -> Any:
    """The value at a dotted key. A section comes as a plain dictionary.

    >>> value_at(Project(), "select.ratio")
    0.4
    """
    value: Any = project
    for name in key.split("."):
        value = getattr(value, name)
    return value.model_dump() if isinstance(value, BaseModel) else value
