"""The project: one frozen model for each section of the project file. All defaults are here.

The `setting` of a key holds its line of documentation, which `codetune init` writes, and the stages whose artefacts
become stale with its value. Dotted keys are found, and read, in `project/keys.py`, the file in `project/file.py`. For a
quick `--help` annotations are objects here, not texts that pydantic compiles, and default sections are constructed
without validators.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, PrivateAttr, Tag

from codetune.errors import InputError
from codetune.project.patterns import NAME_PATTERN, SlurmOption, SlurmTime, SlurmWord
from codetune.user_files import matching_paths

PROJECT_FILE = "codetune.yaml"

StageName = Literal["score", "embed", "select", "train", "generate", "sanitize", "evaluate"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)
SealName = StageName | Literal["holdout"]  # what a value seals: a stage's artefact, or the loss on held-out rows
ChatFormat = Literal["codellama", "codegemma", "deepseek", "starcoder2", "codeqwen", "llama3", "tokenizer"]
Strategy = Literal[
    "ifd_cluster", "parametric", "facility", "mig", "sifd", "ifd", "perplexity", "kcenter", "length", "random", "all"
]
LearnedAnswers = Literal["all", "last"]
PadMode = Literal["max_length", "dynamic_pad", "dynamic_pack", "paper_pack"]
Method = Literal["full", "lora", "qlora"]
TrainingObjective = Literal["nll", "dft"]
Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "adafactor", "muon"]
Precision = Literal["float32", "bfloat16", "float16"]  # of the arithmetic, once `auto` is resolved
Text = Annotated[str, Field(min_length=1)]
OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, str | int | float) else value)  # a list of one
Names = Annotated[list[Text], Field(min_length=1), OneOrMore]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Chance = Annotated[float, Field(ge=0, lt=1)]
AnswerChecks = Annotated[list[Literal["parses", "names", "examples", "closed", "language", "repeats"]], OneOrMore]
OF_HOLDOUT = ("evaluate_steps", "keep_best", "patience")  # keys of `train` without an effect if nothing is held out
T = TypeVar("T")


def setting(default: T, description: str, *seals: SealName, free_on_resume: bool = False) -> T:
    """A key of the project file with its default and its line of documentation.

    `seals` are the artefacts that become stale when the value changes. An unfinished training continues under another
    value of a key that is `free_on_resume`: it changes speed, logs or checkpoints, not what is learned."""
    marks: dict[str, JsonValue] = {**dict.fromkeys(seals, True), "free on resume": free_on_resume}
    field: T = Field(default, description=description, json_schema_extra=marks)
    return field


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Dataset(Section):
    """The data set is known by the content of its rows, so none of these keys seals an artefact by its value."""

    path: Text | None = setting(None, "Hub id, a file (.json .jsonl .csv, also .gz; .parquet), a glob, or a directory")
    split: Text = setting("train", "split of a Hub data set; of files those with it in their names, if any has one")
    instruction: Text | None = setting(
        None, "column of the instruction, null: found by its usual name; Alpaca's `input` is appended"
    )
    response: Text | None = setting(
        None, "column of the answer, null: found; rows of `messages` or `conversations` need neither"
    )


class NamedDataset(Dataset):
    """One of several data sets, which are mixed before the selection (data/mixture.py)."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = setting(None, "its rows are counted by this name")
    weight: Share = setting(1.0, "share of its rows that are taken, the first by their ids")


def _is_list(value: object) -> str:
    return LIST_TAG if isinstance(value, list) else SECTION_TAG


# The tags stand in pydantic's locations of mistakes.
SECTION_TAG, LIST_TAG = "(section)", "(list)"
Datasets = Annotated[
    Annotated[Dataset, Tag(SECTION_TAG)] | Annotated[list[NamedDataset], Field(min_length=1), Tag(LIST_TAG)],
    Discriminator(_is_list),
]


class Model(Section):
    path: Text | None = setting(None, "Hub id or directory of the base model (safetensors)")
    chat_format: ChatFormat | None = setting(
        None, "how turns are written, null: found from the model; `tokenizer` for its own template", "train", "holdout"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = setting(
        "bfloat16",
        "number format of the arithmetic; auto: bfloat16 where this machine multiplies it faster, else float32",
        "score",
        "train",
        "generate",
        "holdout",
    )
    attention: Literal["auto", "flash", "varlen", "sdpa", "eager"] = setting(
        "auto",
        "auto takes what fits; flash (flash-attn) and varlen (torch's own) need a GPU",
        "score",
        "train",
        "holdout",
    )


class Scoring(Section):
    model: Text | None = setting(None, "null is model.path; a smaller model is allowed")
    max_length: Annotated[int, Field(ge=2)] = setting(2048, "tokens of prompt and answer; the rest is cut", "score")
    tokens_per_batch: Count | Literal["auto"] = setting("auto", "padded tokens of one forward pass")
    prompt: Text = setting(
        "Question:\n{instruction}\n\nAnswer:\n", "what stands before the answer; not the chat format", "score"
    )
    empty_prompt: bool = setting(True, "score the answers after the prompt without its instruction as well", "score")
    shuffled_rows: Annotated[int, Field(ge=0)] = setting(
        256, "rows that are scored after another row's instruction as well; needs empty_prompt", "score"
    )
    token_differences: Literal["auto"] | bool = setting(
        "auto", "keep what the instruction changes of each answer token; auto: if select.strategy is sifd", "score"
    )


class Embedding(Section):
    model: Text = setting(
        "sentence-transformers/all-mpnet-base-v2",
        "a sentence-transformers name or path, or `hashing` (offline: hashed n-grams, truncated SVD)",
    )
    batch_size: Count = setting(512, "instructions encoded at once")


class Selection(Section):
    strategy: Strategy = setting(
        "ifd_cluster",
        "ifd_cluster (the paper's) parametric facility mig sifd; controls: ifd perplexity kcenter length random all",
        "select",
    )
    clusters: Count | Literal["auto"] = setting(
        10, "number of clusters of K-means; auto: the number that fits the rows best", "select"
    )
    ratio: Share = setting(0.4, "share of the eligible rows to take: floor(n * ratio) in each cluster", "select")
    count: Count | None = setting(None, "exactly so many rows instead of a share; null is by ratio", "select")
    ratio_of: Literal["eligible", "all"] = setting(
        "eligible", "ratio of the eligible rows of a cluster (the paper), or of all its rows", "select"
    )
    token_share: Share = setting(0.75, "sifd: share of the answer tokens that count (published: 0.5, 0.75)", "select")
    max_ifd: Positive = setting(1.0, "rows with this IFD or more are set aside as mismatched pairs", "select")
    mismatch: Literal["calibrated", "ifd", "none"] = setting(
        "calibrated",
        "sets rows aside by max_ifd and by a test against shuffled pairs, by max_ifd alone (the paper), or none",
        "select",
    )
    mismatch_level: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.05, "calibrated: share of shuffled pairs that may lie above the limit, at least", "select"
    )
    deduplicate: Literal["near", "exact", "none"] = setting(
        "near", "of rows that repeat each other one is kept: near (four fifths in common), exact, or none", "select"
    )
    decontaminate: Literal["auto"] | Annotated[list[Text], OneOrMore] = setting(
        "auto",
        "benchmarks whose prompts and solutions no row may hold; auto: those of evaluate.benchmarks that are here",
        "select",
    )
    checks: AnswerChecks = setting(
        ["parses", "closed", "language", "repeats"], "any of parses names examples closed language repeats", "select"
    )
    best_answer: bool = setting(
        False, "of several answers to one instruction keep the likeliest by the scores; set the others aside", "select"
    )


class LoraSettings(Section):
    r: Count = setting(8, "rank of the adapters", "train")
    alpha: Count = setting(16, "scale is alpha / r, with rslora alpha / sqrt(r)", "train")
    dropout: Chance = setting(0.1, "dropout on the adapter's input", "train")
    target_modules: Text | Names = setting("all-linear", "`all-linear`, or names of modules", "train")
    rslora: bool = setting(False, "divide by sqrt(r) instead of r, so that a high rank learns as fast", "train")
    dora: bool = setting(False, "train the length of each weight row apart from its direction", "train")


class Quantization(Section):
    bits: Literal[4, 8] = setting(4, "bits of a base weight", "train")
    type: Literal["nf4", "fp4"] = setting("nf4", "number format of 4 bits", "train")
    double: bool = setting(True, "quantise the scales as well", "train")


class Training(Section):
    method: Method = setting("full", "what is trained: all weights, or adapters", "train")
    pad_mode: PadMode = setting(
        "dynamic_pack",
        "max_length, dynamic_pad, dynamic_pack (no padding), or paper_pack (the paper's own, padded)",
        "train",
    )
    max_length: Annotated[int, Field(ge=2)] = setting(2048, "tokens of a sample", "train", "holdout")
    too_long: Literal["truncate", "drop"] = setting("truncate", "what happens to longer samples", "train", "holdout")
    learn: LearnedAnswers = setting(
        "all", "the answers of a conversation that are learned: all, or the last", "train", "holdout"
    )
    epochs: Count = setting(3, "passes over the selection", "train")
    max_steps: Count | None = setting(None, "stop after this many optimizer steps; null: all epochs", "train")
    global_batch_size: Count | None = setting(
        None,
        "samples of an optimizer step; null is per device x accumulation x processes",
        "train",
        free_on_resume=True,
    )
    per_device_batch_size: Count = setting(16, "samples of a micro-batch", "train", free_on_resume=True)
    gradient_accumulation_steps: Count = setting(
        4, "micro-batches of a step on one process", "train", free_on_resume=True
    )
    learning_rate: Positive = setting(5.0e-5, "peak of the learning rate", "train")
    scheduler: Literal["cosine", "linear", "wsd", "constant", "constant_with_warmup"] = setting(
        "cosine",
        "how the learning rate falls; wsd: in the last tenth",
        "train",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = setting(15, "steps from 0 to the peak", "train")
    weight_decay: NotNegative = setting(0.0, "decoupled, as in AdamW", "train")
    max_grad_norm: Positive = setting(1.0, "gradients are clipped to this norm", "train")
    optimizer: Optimizer = setting(
        "adamw_torch_fused", "adamw_torch_fused adamw_torch adamw_8bit adafactor, or muon for matrices", "train"
    )
    tf32: bool = setting(True, "TF32 for float32 products on GPUs that have it", "train")
    gradient_checkpointing: bool = setting(
        True, "recompute activations: less memory, more time", "train", free_on_resume=True
    )
    pack_isolation: bool = setting(
        True, "packed samples never see each other; false: each sees those before it, as published", "train"
    )
    sort_in_step: bool = setting(
        False, "cut micro-batches from the step's samples by length; dynamic_pack always cuts them so", "train"
    )
    logging_steps: Count = setting(10, "optimizer steps between two lines of train/metrics.jsonl", free_on_resume=True)
    save_minutes: Positive | None = setting(15, "minutes between checkpoints, or null", free_on_resume=True)
    save_steps: Count | None = setting(None, "optimizer steps between checkpoints, or null", free_on_resume=True)
    keep_checkpoints: Count = setting(2, "checkpoints to keep; older ones are deleted", free_on_resume=True)
    merge: bool = setting(
        False, "save the adapters merged into a whole model (and beside it as they are)", "train", free_on_resume=True
    )
    report_to: Annotated[list[Literal["tensorboard", "wandb"]], OneOrMore] = setting(
        [], "send metrics there as well: [tensorboard], [wandb] or both", free_on_resume=True
    )
    holdout: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = setting(
        0,
        "rows, or a share of all, that select sets apart before it selects; no other row repeats one of them",
        "select",
    )
    evaluate_steps: Count | None = setting(
        None, "optimizer steps between two evaluations on the held-out rows or tasks; null: after each epoch", "train"
    )
    keep_best: Literal["loss", "pass@1"] | None = setting(
        "loss", "the weights that are kept: of the lowest held-out loss, of the best pass@1, or null: the last", "train"
    )
    tasks: Text | None = setting(
        None, "keep_best pass@1: the benchmark it is measured on; no reported result counts these tasks"
    )
    task_count: Count | None = setting(None, "so many of its tasks only, picked by their ids; null: all")
    patience: Count | None = setting(
        None, "stop after so many evaluations in a row that are no better by keep_best; null: never", "train"
    )
    compile: Literal["auto", "always", "never"] = setting(
        "auto", "torch.compile of each layer; auto: where a record shows that it pays, nowhere yet", free_on_resume=True
    )
    objective: TrainingObjective = setting("nll", "nll, or dft: the loss of a token times its probability", "train")
    lora: LoraSettings = LoraSettings.model_construct()
    quantization: Quantization = Quantization.model_construct()

    @property
    def is_evaluated(self) -> bool:
        return bool(self.holdout) or self.keep_best == "pass@1"  # between its steps


class Generation(Section):
    prompt: Literal["auto", "completion", "chat"] = setting(
        "auto", "auto: chat for a model that codetune trained, completion for `base`", "generate"
    )
    max_new_tokens: Count = setting(1024, "longest completion", "generate")
    samples_per_task: Count = setting(1, "completions of a task", "generate")
    temperature: NotNegative = setting(0.0, "0 is greedy", "generate")
    top_p: Share = setting(0.95, "nucleus sampling; used if temperature is above 0", "generate")
    batch_size: Count | Literal["auto"] = setting("auto", "prompts decoded at once; auto: 32, or what fits on a GPU")
    backend: Literal["auto", "transformers", "vllm"] = setting(
        "auto", "what decodes: auto is vllm where it is installed and a GPU is there, else transformers"
    )


class Evaluation(Section):
    benchmarks: Names = setting(
        ["humaneval", "mbpp"],
        "humaneval, mbpp, humaneval_pro, mbpp_pro, cruxeval, leetcode, demo, or paths of files of tasks",
    )
    sandbox: Literal["auto", "bubblewrap", "namespaces", "landlock", "none"] = setting(
        "auto", "how generated code is confined: auto is the strongest way that works here, or an error", "evaluate"
    )
    k: Annotated[list[Count], Field(min_length=1), OneOrMore] = setting([1], "the k of pass@k", "evaluate")


class Launch(Section):
    processes: Count | Literal["auto"] = setting("auto", "auto is one per GPU, 1 without")
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3"] = setting(
        "auto", "how processes share the model"
    )
    nodes: Count = setting(1, "number of machines")
    offload: Literal["none", "optimizer", "all"] = setting("none", "what moves to CPU memory")


class Slurm(Section):
    """What `codetune slurm` asks of the cluster. A key that is null leaves its line out of the job scripts."""

    account: SlurmWord | None = setting(None, "account of the jobs; null: Slurm's default, as for the next three")
    partition: SlurmWord | None = setting(None, "partition of the jobs")
    gpus: Count | None = setting(None, "GPUs of each machine; a task of a job array takes one")
    time: Count | SlurmTime | None = setting(None, "limit of each job: minutes, or as in 12:00:00 and 2-00:00:00")
    shards: Count = setting(8, "tasks of the job arrays of score and embed")
    options: Annotated[list[SlurmOption], OneOrMore] = setting(
        [], "more options of sbatch for every job, such as [--mem=64G, --cpus-per-task=8]"
    )


class Project(Section):
    """A whole project. `root` is the directory that relative paths start from; `overrides` are the settings, by dotted
    key, that came by flag or `--set` instead of the file."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = setting("default", "name of the run")
    output_dir: Text | None = setting(None, "default runs/<name>; relative paths are relative to this file")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = setting(
        42, "seed of everything random", "embed", "select", "train", "generate", "holdout"
    )
    dataset: Datasets = Dataset.model_construct()
    model: Model = Model.model_construct()
    score: Scoring = Scoring.model_construct()
    embed: Embedding = Embedding.model_construct()
    select: Selection = Selection.model_construct()
    train: Training = Training.model_construct()
    generate: Generation = Generation.model_construct()
    evaluate: Evaluation = Evaluation.model_construct()
    launch: Launch = Launch.model_construct()
    slurm: Slurm = Slurm.model_construct()

    _root: Path = PrivateAttr(default_factory=Path.cwd)
    _overrides: dict[str, object] = PrivateAttr(default_factory=dict)

    @property
    def root(self) -> Path:
        return self._root

    @property
    def overrides(self) -> Mapping[str, object]:
        return self._overrides

    @property
    def datasets(self) -> Sequence[Dataset]:
        """The data set, or all of them where the project has a list."""
        return self.dataset if isinstance(self.dataset, list) else [self.dataset]

    @property
    def run_dir(self) -> Path:
        return self.root / (self.output_dir or f"runs/{self.name}")

    def locate(self, name: str) -> str:
        """`name` as a path relative to the project file, else to the current directory, else unchanged (a Hub id).

        Raises InputError where the name cannot be a path."""
        try:
            for path in (base / Path(name).expanduser() for base in (self.root, Path.cwd())):
                if path.exists() or (glob.has_magic(name) and any(matching_paths(str(path)))):
                    return str(path)
        except (RuntimeError, OSError) as why:  # no such user's home; a name longer than any file's
            raise InputError(f"{name} cannot be a path: {why}. Fix it in the project file") from None
        return name

    def placed(self, root: Path, overrides: Mapping[str, object]) -> Self:
        """A copy with the directory that relative paths start from, and the settings that came by flag."""
        copy = self.model_copy()
        copy._root, copy._overrides = root.resolve(), dict(overrides)
        return copy
