"""Makes again what `base/` ships (`make demo-base`): `write_nursery`, then `codetune select` and `train`, then `ship`.
A tokenizer learned from the grammar's texts, random weights, and a project whose `train` stage is the pretraining, on
texts as found in the wild: code alone, code under comments that tell half of it, questions with answers. Neither the
benchmarks' reserved compositions nor the chat format of the demo's fine-tuning occur in them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from codetune.demo.grammar import Task, draw_task, say
from codetune.demo.wording import answer, instruct
from codetune.demo.world import SHIPPED_BASE
from codetune.errors import InputError
from codetune.project.file import commented_yaml
from codetune.project.sections import PROJECT_FILE
from codetune.store.files import write_lines, write_text

SEED = 42
BATCH, STEPS = 32, 2400
VOCABULARY, TOKENIZER_TEXTS = 768, 6000
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
HIDDEN, INTERMEDIATE, LAYERS, HEADS, WINDOW = 128, 384, 4, 4, 1024
INITIAL_DEVIATION = 0.05  # so small a model learns to copy names several times sooner than from the usual 0.02
NORMS = ("model.layers.{}.input_layernorm", "model.layers.{}.post_attention_layernorm")
UNTRAINED, DATA_FILE = "untrained", "texts.jsonl"
ALONE = "(nothing)"  # an instruction must not be empty: the template writes this one as nothing
# What stands before is given, what follows is learned; nothing is added but BOS and EOS.
RAW_TEXT = (
    "{{- bos_token -}}{%- for message in messages -%}"
    f"{{%- if message['content'] != '{ALONE}' -%}}{{{{- message['content'] -}}}}{{%- endif -%}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}{%- endfor -%}"
)
LENGTHS, LENGTH_WEIGHTS = (1, 2, 3, 4), (2, 3, 4, 3)
DRAWS = 3  # of tasks for a text; the one with the most numbers and letters is written
SHARE_SAID = 0.3  # of the steps, in a comment or docstring of the wild
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
TOKENIZER_FILE, TOKENIZER_SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
SETTINGS = {
    "name": "demo-base",
    "seed": SEED,
    "dataset.path": DATA_FILE,
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


def write_nursery(directory: Path) -> None:
    """Everything that the `select` and `train` stages need to make the base model."""
    random = Random(SEED)
    texts = dict.fromkeys(draw_text(random) for _ in range(BATCH * STEPS))
    rows = (json.dumps({"problem": before, "solution": text}) for before, text in texts)
    write_lines(directory / DATA_FILE, rows)
    write_untrained(directory / UNTRAINED)
    write_text(directory / PROJECT_FILE, commented_yaml(SETTINGS))


def ship(nursery: Path, base: Path) -> None:
    """The trained weights as they are shipped, in half precision, beside a tokenizer without chat template."""
    untrained, trained = nursery / UNTRAINED, nursery / "runs" / str(SETTINGS["name"]) / "model"
    base.mkdir(parents=True, exist_ok=True)
    weights = {name: value.astype(np.float16) for name, value in load_file(trained / WEIGHTS_FILE).items()}
    save_file(weights, base / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copy(untrained / TOKENIZER_FILE, base / TOKENIZER_FILE)
    settings = _read_json(untrained / TOKENIZER_SETTINGS_FILE)
    _write_json(base / TOKENIZER_SETTINGS_FILE, {key: settings[key] for key in settings if key != "chat_template"})
    _write_json(base / CONFIG_FILE, {**_read_json(untrained / CONFIG_FILE), "dtype": "float16"})


def draw_text(random: Random) -> tuple[str, str]:
    """What is given and what is to be learned."""
    drawn = [draw_task(random, random.choices(LENGTHS, LENGTH_WEIGHTS)[0], reserved=False) for _ in range(DRAWS)]
    task = max(drawn, key=_values_to_copy)
    kinds = {
        "code": (ALONE, task.code),
        "fenced": (ALONE, answer(task)),
        "comment": (f"# {_half(task, random)}.\n", task.code),
        "docstring": (f'{task.signature}    """{_half(task, random)}."""\n', task.body),
        "question": (f"Question:\n{instruct(task, random)}\n\nAnswer:\n", answer(task)),
        "short": (f"Q: {instruct(task, random)}\nA:\n", answer(task)),
    }
    return kinds[random.choices(tuple(kinds), (10, 5, 6, 7, 57, 15))[0]]


def learn_tokenizer(random: Random) -> Tokenizer:
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
    tokenizer = learn_tokenizer(Random(SEED))
    tokenizer.save(str(directory / TOKENIZER_FILE))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": WINDOW, "add_bos_token": True}
    _write_json(directory / TOKENIZER_SETTINGS_FILE, {**settings, **special, "chat_template": RAW_TEXT})
    ids = {f"{name}_id": tokenizer.token_to_id(token) for name, token in special.items()}
    _write_json(directory / CONFIG_FILE, {**_architecture(), **ids})
    save_file(_random_weights(), directory / WEIGHTS_FILE, metadata={"format": "pt"})


def _values_to_copy(task: Task) -> int:
    """Copying numbers and letters is what takes longest to learn, so the texts hold many."""
    return sum("{n}" in step.code or "{c}" in step.code for step in task.steps)


def _half(task: Task, random: Random) -> str:
    """Some of the steps in words, at least one: comments of the wild do not say all."""
    phrases = say(task, random)
    said = [phrase for phrase in phrases if random.random() < SHARE_SAID] or [random.choice(phrases)]
    text = " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))
    return text[0].upper() + text[1:]


def _architecture() -> dict[str, Any]:
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


def _random_weights() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    generator = np.random.default_rng(SEED)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        begin = f"model.layers.{layer}."
        shapes |= {f"{begin}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{begin}mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{begin}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    weights = {
        name: (generator.standard_normal(shape) * INITIAL_DEVIATION).astype(np.float32)
        for name, shape in shapes.items()
    }
    norms = ["model.norm", *(name.format(layer) for layer in range(LAYERS) for name in NORMS)]
    return weights | {f"{norm}.weight": np.ones(HIDDEN, np.float32) for norm in norms}


def _read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write_text(path, json.dumps(document, indent=2) + "\n")


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--ship", directory]:
            ship(Path(directory), SHIPPED_BASE)
        case [directory] if not directory.startswith("-"):
            write_nursery(Path(directory))
        case _:
            sys.stderr.write("Expected: python -m codetune.demo.pretrain DIR, or --ship DIR once it is trained\n")
            return InputError.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
