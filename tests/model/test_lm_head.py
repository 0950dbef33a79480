"""The output layer alone, and architectures that change its logits."""

from __future__ import annotations

import pytest
import torch

from codetune.errors import ModelError
from codetune.model.lm_head import has_plain_lm_head, hidden_to_logits
from tests.model.builders import ARCHITECTURES, CHANGED_LOGITS, tiny_model

VOCABULARY = 320


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_most_architectures_end_with_their_output_layer(architecture: str) -> None:
    model = tiny_model(architecture, VOCABULARY).train()
    assert has_plain_lm_head(model)
    assert model.training
    assert model(torch.arange(5)[None]).logits.shape == (1, 5, VOCABULARY)


@pytest.mark.parametrize("architecture", CHANGED_LOGITS)
def test_some_architectures_cap_or_scale_its_logits(architecture: str) -> None:
    assert not has_plain_lm_head(tiny_model(architecture, VOCABULARY))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *CHANGED_LOGITS])
@torch.inference_mode()
def test_some_positions_get_the_logits_of_the_whole_model(architecture: str) -> None:
    model = tiny_model(architecture, VOCABULARY)
    tokens = torch.arange(20)[None]
    hidden = model.base_model(tokens, use_cache=False).last_hidden_state[0]
    positions = torch.tensor([19, 3, 4])
    assert torch.allclose(hidden_to_logits(model)(hidden[positions]), model(tokens).logits[0, positions], atol=1e-6)
    assert torch.equal(model.base_model(tokens, use_cache=False).last_hidden_state[0], hidden)


def test_logits_that_come_from_elsewhere_are_an_error() -> None:
    model = tiny_model("llama", VOCABULARY)
    model.base_model.norm.register_forward_hook(lambda *given: given[-1] + torch.rand_like(given[-1]))
    with pytest.raises(ModelError, match="The architecture llama does not make its logits from its last hidden"):
        hidden_to_logits(model)
