"""Completions of token prompts, greedy or sampled, a batch at a time through one network with a key-value cache.

Rows are padded on the left and their positions start at their own first token, so a completion depends neither on the
rest of the batch nor on its size (in float32; except for exact ties of two logits). Finished rows leave the batch. No
beam search.

Networks with a recurrent state (Mamba, RecurrentGemma, Jamba, ...) cannot be padded, because padding would enter the
state: their batches have prompts of equal length. Where the state is stored differs between architectures, so
transformers' own `generate` runs them; a logits processor forces the tokens that are chosen here.

Processes that hold one network together run the same batches in step, with the tokens that rank 0 chooses.

Axes: B rows in the batch, P prompt tokens after padding, V vocabulary."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from codetune.errors import CodetuneError, InputError
from codetune.launch.process_group import SINGLE_PROCESS, ProcessGroup
from codetune.model.decoding import (
    NOT_FINITE,
    STOP_CHECK_TOKENS,
    GeneratedText,
    GenerationRequest,
    StopCriteria,
    masked_where_not_finite,
    not_finite_logits,
    sample,
    uniform,
)
from codetune.model.plain_layers import input_embeddings
from codetune.model.tensor_parallel import kv_cache_ranks
from codetune.project.sections import Generation

ROWS_ON_CPU = 32  # with a tiny model on two cores, 32 to 64 are the fastest
MAX_ROWS_ON_GPU = 256  # more would wait for the longest row
CACHE_FRACTION = 0.4  # of the free memory: the cache is copied when it grows, and prompts have activations
# Layers that positions mask padding for. Unknown kinds count as recurrent.
ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
ChooseTokens = Callable[[torch.Tensor], tuple[torch.Tensor, bool]]  # logits [B, V] -> tokens [B], all rows finished?


class BatchGenerator:
    """Implements `decoding.Decoder`."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        end_of_turn: Sequence[str],
        settings: Generation,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._network = network
        self._is_recurrent = is_recurrent(network)
        self._group = group
        self._criteria = StopCriteria(tokenizer, [network.config, network.generation_config], end_of_turn)
        self._settings = settings

    def refusal(self, request: GenerationRequest) -> str:
        """The reason why the model cannot complete the prompt; "" if it can."""
        return self._criteria.refusal(request)

    def complete(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, GeneratedText]]:
        """Index and completion of each request when it is finished, in batches in the given order. A batch that does
        not fit into memory is halved, and later ones are no larger. Raises InputError for a prompt with tokens that
        the model does not know, CodetuneError if one row does not fit, or if logits are not finite."""
        _require_known_tokens(self._network, requests)
        limit = self._settings.max_new_tokens
        rows = [_Row(i, request, self._criteria.token_limit(request, limit)) for i, request in enumerate(requests)]
        size = self._batch_size(rows)
        while waiting := [row for row in rows if not row.finished]:
            batch = _of_equal_length(waiting)[:size] if self._is_recurrent else waiting[:size]
            try:
                for row in self._generate_recurrent(batch) if self._is_recurrent else self._generate(batch):
                    yield row.index, self._criteria.generated_text(row.request, row.tokens)
            except torch.OutOfMemoryError as error:
                self._require_divisible(batch, error)
                size = len(batch) // 2
            else:
                continue
            # Outside of the handler, whose traceback keeps the tensors.
            torch.cuda.empty_cache()

    def _require_divisible(self, batch: Sequence[_Row], error: torch.OutOfMemoryError) -> None:
        """Raises CodetuneError if the batch cannot be halved."""
        if self._group.count > 1:  # the other ranks wait inside the network and cannot start again
            raise CodetuneError(
                f"Out of memory while completing {len(batch)} prompts over {self._group.count} GPUs. Expected: room "
                "for all of them. Nothing that was finished is lost: set generate.batch_size to a smaller number, and "
                "run the command again"
            ) from error
        if len(batch) == 1:
            raise CodetuneError(
                f"Out of memory while completing one prompt of {len(batch[0].request.prompt)} tokens. Expected: room "
                "for it and generate.max_new_tokens. Lower that, use a smaller dtype, or a larger GPU."
            ) from error

    def _batch_size(self, rows: Sequence[_Row]) -> int:
        if self._is_recurrent and not _keeps_rows_apart(self._network):
            return 1
        if self._settings.batch_size != "auto":
            return self._settings.batch_size
        if self._network.device.type != "cuda" or self._is_recurrent:  # the size of a state is not known beforehand
            return ROWS_ON_CPU
        longest = max((len(row.request.prompt) + row.token_limit for row in rows), default=1)
        free = int(self._group.min(torch.cuda.mem_get_info(self._network.device)[0]))
        per_token = cache_bytes_per_token(self._network.config, self._network.dtype)
        return rows_that_fit(free, longest * per_token // kv_cache_ranks(self._network.config, self._group.count))

    @torch.inference_mode()
    def _generate(self, rows: list[_Row]) -> Iterator[_Row]:
        """The rows as they are finished."""
        device = self._network.device
        ids, mask = _pad_left([row.request.prompt for row in rows], device)  # [B, P] both
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._network.config)
        active = rows
        for row in rows:  # a larger batch may have started them
            row.tokens = []
        while active:
            output = self._network(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            chosen = self._choose(output.logits[:, -1], active)  # [B, V] -> [B]
            for row, token in zip(active, chosen.tolist(), strict=True):
                if not row.finished and self._append(row, token):
                    row.finished = True
                    yield row
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions, ids = positions[:, -1:] + 1, chosen[:, None].clamp(min=0)  # of finished rows
            # Finished rows stay until they are half of the batch, because copying the cache costs time as well.
            left = [index for index, row in enumerate(active) if not row.finished]
            if len(left) <= len(active) // 2:
                kept = torch.tensor(left, device=device, dtype=torch.long)
                cache.batch_select_indices(kept)
                mask, positions, ids = mask[kept], positions[kept], ids[kept]
                active = [active[index] for index in left]

    def _generate_recurrent(self, rows: list[_Row]) -> list[_Row]:
        """Rows with prompts of equal length, all finished."""
        ended = [False] * len(rows)
        for row in rows:  # a larger batch may have started them
            row.tokens = []

        def choose(logits: torch.Tensor) -> tuple[torch.Tensor, bool]:
            chosen = self._choose(logits, rows)
            for index, token in enumerate(chosen.tolist()):
                ended[index] = ended[index] or self._append(rows[index], token)
            return chosen.clamp(min=0), all(ended)

        with torch.inference_mode():
            prompts = torch.tensor([row.request.prompt for row in rows], device=self._network.device)  # [B, P]
            _generate_with_transformers(self._network, prompts, max(row.token_limit for row in rows), choose)
        for row in rows:
            row.finished = True
        return rows

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
        """The next token of each row, [B], from logits [B, V], or `NOT_FINITE`; the same in all ranks."""
        if self._settings.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            numbers = [uniform(row.request.stream, len(row.tokens)) for row in rows]
            chosen = sample(logits, self._settings.temperature, self._settings.top_p, numbers)
        return self._group.broadcast(masked_where_not_finite(chosen, logits))

    def _append(self, row: _Row, token: int) -> bool:
        """Appends the token to the row and says whether the row ends with it. Raises CodetuneError for `NOT_FINITE`."""
        if token == NOT_FINITE:
            raise not_finite_logits(row.request, len(row.tokens), str(self._network.dtype).removeprefix("torch."))
        row.tokens.append(token)
        if token in self._criteria.tokens or len(row.tokens) >= row.token_limit:
            return True
        return len(row.tokens) % STOP_CHECK_TOKENS == 0 and self._criteria.has_stop(row.request, row.tokens)


@dataclass(slots=True)
class _Row:
    index: int
    request: GenerationRequest
    token_limit: int
    tokens: list[int] = field(default_factory=list)
    finished: bool = False


def _require_known_tokens(network: PreTrainedModel, requests: Sequence[GenerationRequest]) -> None:
    """A tokenizer may have more tokens than the network has embeddings, as long as no prompt contains one of them."""
    known = input_embeddings(network).weight.shape[0]
    largest = max((token for request in requests for token in request.prompt), default=0)
    if largest >= known:
        raise InputError(
            f"A prompt has the token {largest}, and the model knows {known:,}: its tokenizer belongs to another model, "
            "or tokens were added to it only. Expected: tokens below that number. Put the model's own tokenizer beside "
            "its weights."
        )


def _of_equal_length(rows: Sequence[_Row]) -> list[_Row]:
    """The rows whose prompt is as long as that of the first one."""
    return [row for row in rows if len(row.request.prompt) == len(rows[0].request.prompt)]


def rows_that_fit(free_bytes: int, bytes_per_row: int) -> int:
    """
    >>> rows_that_fit(free_bytes=10 * 2**30, bytes_per_row=2**27)  # 4 GB of 128 MB each
    32
    """
    return min(max(1, int(free_bytes * CACHE_FRACTION / bytes_per_row)), MAX_ROWS_ON_GPU)


def cache_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of all layers; a sliding window needs less."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * int(heads) * int(width) * dtype.itemsize


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [B, P] both."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # padding is masked, so any token will do
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        mask[index, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def is_recurrent(network: PreTrainedModel) -> bool:
    """Whether padding on the left would change a completion, as far as the network's configuration tells."""
    layers = getattr(network.config, "layer_types", None) or ()
    return (
        # transformers' own flag (5.17 to 5.23); some networks with convolutions lack it
        bool(getattr(network, "_is_stateful", False))
        or not ATTENTION_LAYERS.issuperset(layers)
        or "past_key_values" not in inspect.signature(network.forward).parameters
    )


def _keeps_rows_apart(network: PreTrainedModel) -> bool:
    """False for RWKV, which in transformers 5.17 to 5.23 mixes the rows of a batch: [B, D] is added to [B, 1, D]."""
    return not {"past_key_values", "cache_params"}.isdisjoint(inspect.signature(network.forward).parameters)


def _generate_with_transformers(
    network: PreTrainedModel, prompts: torch.Tensor, max_new_tokens: int, choose: ChooseTokens
) -> None:
    """Runs transformers' `generate` on prompts [B, P], with every token chosen by `choose`."""
    forced = _ForcedTokens(choose)
    with _plain_generation_config(network, max_new_tokens):
        network.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            logits_processor=LogitsProcessorList([forced]),
            stopping_criteria=StoppingCriteriaList([_AllRowsFinished(forced)]),
        )


class _ForcedTokens(LogitsProcessor):
    """Masks all tokens but the chosen ones."""

    def __init__(self, choose: ChooseTokens) -> None:
        self._choose = choose
        self.finished = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen, self.finished = self._choose(scores)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)  # [B, V]


class _AllRowsFinished(StoppingCriteria):
    def __init__(self, forced: _ForcedTokens) -> None:
        self._forced = forced

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.full((len(input_ids),), self._forced.finished, device=input_ids.device)


@contextmanager
def _plain_generation_config(network: PreTrainedModel, max_new_tokens: int) -> Iterator[None]:
    """Replaces the generation configuration of the network, whose penalties and suppressed tokens would change the
    logits."""
    own = network.generation_config
    network.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_new_tokens, use_cache=True
    )
    try:
        yield
    finally:
        network.generation_config = own
