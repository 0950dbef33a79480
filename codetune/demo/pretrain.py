"""Makes the base model in `base/` again (`make demo-base`): `write_pretraining_project`, then `codetune select` and
`codetune train`, then `export_base`.

The project has a tokenizer trained on the demo's tasks, random weights, and a data set for pretraining: code alone,
code after comments that describe a part of it, and questions with answers. It contains neither the compositions that
are reserved for the benchmark nor the chat format of the demo's fine-tuning.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from codetune.demo.demo_project import SHIPPED_BASE
from codetune.demo.instructions import answer, instruct
from codetune.demo.tasks import Task, draw_phrases, draw_task
from codetune.errors import InputError
from codetune.project.file import commented_yaml
from codetune.project.sections import PROJECT_FILE
from codetune.store.files import write_lines, write_text

SEED = 42
BATCH, STEPS = 32, 2400
VOCABULARY, TOKENIZER_TEXTS = 768, 6000
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
HIDDEN, INTERMEDIATE, LAYERS, HEADS, WINDOW = 128, 384, 4, 4, 1024
INITIAL_DEVIATION = 0.05  # a model this small learns to copy names several times sooner than with the usual 0.02
NORMS = ("model.layers.{}.input_layernorm", "model.layers.{}.post_attention_layernorm")
UNTRAINED, DATA_FILE = "untrained", "texts.jsonl"
NO_INSTRUCTION = "(nothing)"  # stands for an empty instruction, which a row must not have
# Plain text: the instruction, then the answer, with nothing but BOS and EOS added.
CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    f"{{%- if message['content'] != '{NO_INSTRUCTION}' -%}}{{{{- message['content'] -}}}}{{%- endif -%}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}{%- endfor -%}"
)
LENGTHS, LENGTH_WEIGHTS = (1, 2, 3, 4), (2, 3, 4, 3)
DRAWS = 3  # tasks drawn for a text, of which the one with the most numbers and letters is used
DESCRIBED_SHARE = 0.3  # of the operations, in a comment or docstring
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
TOKENIZER_FILE, TOKENIZER_SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
SETTINGS = {
    "name": "demo-base",
    "seed": SEED,
    "dataset.path": DATA_FILE,
    "dataset.instruction": "problem",
    "dataset.response": "solution",
    "model.path": UNTRAINED,
    "model.chat_format": "tokenizer",
    "model.dtype": "float32",
    "select.strategy": "all",
    "train.max_length": 512,
    "train.epochs": 1,
    "train.per_device_batch_size": BATCH,
    "train.gradient_accumulation_steps": 1,
    "train.learning_rate": 3.0e-3,
    "train.scheduler": "cosine",
    "train.warmup_steps": 50,
    "train.gradient_checkpointing": False,
}


def write_pretraining_project(directory: Path) -> None:
    """Writes the project whose `select` and `train` stages make the base model."""
    random = Random(SEED)
    texts = dict.fromkeys(draw_text(random) for _ in range(BATCH * STEPS))
    rows = (json.dumps({"problem": before, "solution": text}) for before, text in texts)
    write_lines(directory / DATA_FILE, rows)
    write_untrained(directory / UNTRAINED)
    write_text(directory / PROJECT_FILE, commented_yaml(SETTINGS))


def export_base(project: Path, base: Path) -> None:
    """Writes the trained weights in half precision to `base`, with a tokenizer that has no chat template."""
    untrained, trained = project / UNTRAINED, project / "runs" / str(SETTINGS["name"]) / "model"
    base.mkdir(parents=True, exist_ok=True)
    weights = {name: value.astype(np.float16) for name, value in load_file(trained / WEIGHTS_FILE).items()}
    save_file(weights, base / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copy(untrained / TOKENIZER_FILE, base / TOKENIZER_FILE)
    settings = _read_json(untrained / TOKENIZER_SETTINGS_FILE)
    _write_json(base / TOKENIZER_SETTINGS_FILE, {key: settings[key] for key in settings if key != "chat_template"})
    _write_json(base / CONFIG_FILE, {**_read_json(untrained / CONFIG_FILE), "dtype": "float16"})


def draw_text(random: Random) -> tuple[str, str]:
    """An instruction (or the text before the code) and the text to be learned after it."""
    drawn = [draw_task(random, random.choices(LENGTHS, LENGTH_WEIGHTS)[0], reserved=False) for _ in range(DRAWS)]
    task = max(drawn, key=_placeholders)
    kinds = {
        "code": (NO_INSTRUCTION, task.code),
        "fenced": (NO_INSTRUCTION, answer(task)),
        "comment": (f"# {_partial_description(task, random)}.\n", task.code),
        "docstring": (f'{task.signature}    """{_partial_description(task, random)}."""\n', task.body),
        "question": (f"Question:\n{instruct(task, random)}\n\nAnswer:\n", answer(task)),
        "short": (f"Q: {instruct(task, random)}\nA:\n", answer(task)),
    }
    return kinds[random.choices(tuple(kinds), (10, 5, 6, 7, 57, 15))[0]]


def train_tokenizer(random: Random) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(("".join(draw_text(random)) for _ in range(TOKENIZER_TEXTS)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", None, [(BOS, tokenizer.token_to_id(BOS))])
    return tokenizer


def write_untrained(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(Random(SEED))
    tokenizer.save(str(directory / TOKENIZER_FILE))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": WINDOW, "add_bos_token": True}
    _write_json(directory / TOKENIZER_SETTINGS_FILE, {**settings, **special, "chat_template": CHAT_TEMPLATE})
    ids = {f"{name}_id": tokenizer.token_to_id(token) for name, token in special.items()}
    _write_json(directory / CONFIG_FILE, {**_architecture(), **ids})
    save_file(_random_weights(), directory / WEIGHTS_FILE, metadata={"format": "pt"})


def _placeholders(task: Task) -> int:
    """The number of operations that hold a number or letter. Copying these takes longest to learn, so the texts have
    many."""
    return sum("{n}" in operation.code or "{c}" in operation.code for operation in task.operations)


def _partial_description(task: Task, random: Random) -> str:
    """Some of the operations in words, at least one: real comments are incomplete."""
    phrases = draw_phrases(task, random)
    described = [phrase for phrase in phrases if random.random() < DESCRIBED_SHARE] or [random.choice(phrases)]
    text = " and ".join(filter(None, (", ".join(described[:-1]), described[-1])))
    return text[0].upper() + text[1:]


def _architecture() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": WINDOW,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _random_weights() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(SEED)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    draws = {name: generator.standard_normal(shape) * INITIAL_DEVIATION for name, shape in shapes.items()}
    weights = {name: draw.astype(np.float32) for name, draw in draws.items()}
    norms = ["model.norm", *(name.format(layer) for layer in range(LAYERS) for name in NORMS)]
    return weights | {f"{norm}.weight": np.ones(HIDDEN, np.float32) for norm in norms}


def _read_json(path: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _write_json(path: Path, document: dict[str, object]) -> None:
    write_text(path, json.dumps(document, indent=2) + "\n")


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--ship", directory]:
            export_base(Path(directory), SHIPPED_BASE)
        case [directory] if not directory.startswith("-"):
            write_pretraining_project(Path(directory))
        case _:
            sys.stderr.write("Expected: python -m codetune.demo.pretrain DIR, or --ship DIR once it is trained\n")
            return InputError.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
