"""The directory of a model -> a private repository on the Hugging Face Hub; and the front matter of a model card, in
the words that the Hub reads.

Asks nothing on standard input. What can be known before hours of training is checked by `require_upload`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from codetune.data.hub import OFFLINE, TransportError, ask_in_time
from codetune.errors import CodetuneError, InputError, UsageError, first_line

TASK = "text-generation"  # of the Hub's kinds of models
# The user cannot end these refusals: the Hub is busy, or broken.
PASSING_REFUSALS = (408, 429)
REFUSED_CARD = "Invalid metadata in README.md"  # how huggingface_hub begins its ValueError
_LICENSE = re.compile(r"(license(?:_name|_link)?):[ \t]*['\"]?([^\s'\"]+)['\"]?[ \t]*")


@dataclass(frozen=True, slots=True)
class MeasuredResult:
    """One figure of the results in a model card."""

    benchmark: str
    tests: str
    metric: str
    value: float


def front_matter(fields: Mapping[str, str | list[str]]) -> str:
    """YAML of a card's fields; those that are empty are left out."""
    known: dict[str, Any] = {name: value for name, value in fields.items() if value}  # of as many types as keywords
    return f"{ModelCardData(**known).to_yaml()}\n"


def results_matter(model: str, results: Sequence[MeasuredResult]) -> str:
    """YAML of the field `model-index`; empty where nothing was measured."""
    if not results:
        return ""
    found = [
        EvalResult(
            task_type=TASK,
            dataset_type=each.benchmark,
            dataset_name=f"{each.benchmark} ({each.tests})",
            dataset_config=each.tests,  # results of one configuration are taken for those of one data set
            metric_type=each.metric,
            metric_value=each.value,
        )
        for each in results
    ]
    return f"{ModelCardData(model_name=model, eval_results=found).to_yaml()}\n"


def license_fields(card: str) -> dict[str, str]:
    """What the front matter of another model's card says of its licence, where that is one word a field.

    >>> license_fields("---\\nlicense: other\\nlicense_name: deepseek\\n---\\nlicense: mit")
    {'license': 'other', 'license_name': 'deepseek'}
    """
    opening, *fields = card.splitlines() or [""]
    if opening.strip() != "---" or "---" not in map(str.strip, fields):
        return {}
    matter = fields[: [field.strip() for field in fields].index("---")]
    return {found[1]: found[2] for field in matter if (found := _LICENSE.fullmatch(field))}


def has_token() -> bool:
    """Whether the user is logged in to the Hub, or HF_TOKEN is set. Makes no request."""
    return get_token() is not None


def require_upload(repository: str) -> None:
    """Raises InputError where the name of the repository, or the token, cannot be right or the Hub must not be asked,
    and CodetuneError where the Hub does not answer."""
    _require_name(repository)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise InputError(
            f"--push {repository}: {OFFLINE}, so nothing can be uploaded. Expected: a Hub that may be asked. Unset "
            "HF_HUB_OFFLINE, or leave --push out and push later: the model is not trained again"
        )
    if not has_token():
        raise InputError(
            f"--push {repository}: there is no token of the Hugging Face Hub on this machine. Expected: one that may "
            "write. Log in (hf auth login), or set HF_TOKEN"
        )
    owner = ask_in_time(HfApi().whoami)
    if isinstance(owner, HfHubHTTPError) and _is_final(owner):
        raise _refused(repository, owner)
    if isinstance(owner, Exception):
        raise CodetuneError(
            f"--push {repository}: the Hub at {huggingface_hub.constants.ENDPOINT} is unreachable "
            f"({type(owner).__name__}: {first_line(owner)}). Expected: an answer. Try again where there is a network, "
            "or leave --push out and push later: the model is not trained again"
        )
    if owner.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"--push {repository}: the token of {owner.get('name')} may only read. Expected: one that may write. Make "
            f"one ({huggingface_hub.constants.ENDPOINT}/settings/tokens), then: hf auth login"
        )


def upload_model(directory: Path, repository: str, replaced: Mapping[str, bytes]) -> str:
    """Uploads all files of a directory in one commit, and returns the address of the repository, which is made private
    where it is new. `replaced` has other contents for some files, by their names below the directory.

    Raises InputError where the Hub refuses, also the front matter of the card, and CodetuneError where the connection
    breaks off."""
    api, files = HfApi(), sorted(path for path in directory.rglob("*") if path.is_file())
    try:
        address = api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        names = {path.relative_to(directory).as_posix(): path for path in files}
        operations = [CommitOperationAdd(name, replaced.get(name, path)) for name, path in names.items()]
        api.create_commit(address.repo_id, operations, commit_message="Upload the model")
    except (OSError, TransportError, ValueError) as error:
        if isinstance(error, HfHubHTTPError) and _is_final(error):
            raise _refused(repository, error) from None
        if str(error).startswith(REFUSED_CARD):
            raise InputError(
                f"{directory}: the Hub refused the front matter of README.md ({' '.join(str(error).split())}). "
                "Expected: the fields of a model card in YAML. Fix it, or remove the file: codetune writes it again"
            ) from None
        raise CodetuneError(
            f"The upload to {repository} broke off ({type(error).__name__}: {first_line(error)}). Nothing is lost: the "
            f"model is finished in {directory}. Run the same command again: it uploads without training"
        ) from None
    return str(address)


def _require_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UsageError(
            f"--push {repository}: not the name of a repository on the Hugging Face Hub. Expected: NAME or OWNER/NAME "
            "of letters, digits, `-`, `_` and `.`, at most 96 in all, such as --push my-name/my-model"
        ) from None


def _is_final(error: HfHubHTTPError) -> bool:
    """Whether the same request would be refused again."""
    status = error.response.status_code
    return 400 <= status < 500 and status not in PASSING_REFUSALS


def _refused(repository: str, error: HfHubHTTPError) -> InputError:
    said = error.server_message or first_line(error)
    return InputError(
        f"--push {repository}: the Hub refused it ({error.response.status_code}: {said}). Expected: a token that may "
        "write there. Name a repository of your own, or log in with another token: hf auth login. A finished model "
        "stays as it is, and is pushed without training"
    )
