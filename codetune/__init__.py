"""codetune: fine-tune a code LLM on the part of an instruction set that is worth training on."""

__version__ = "0.2.0"
