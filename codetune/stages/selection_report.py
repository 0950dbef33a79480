"""The diagnostics of a selection as `selection.report.json`, as lines for people, and, for what smells, as sentences.

The figures are made in `selection/diagnostics.py`, `cost.py`, `novelsum.py` and `embedding_map.py`; what other stages
know of the rows comes from their manifests."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from codetune.console import counts, percent, quantity
from codetune.data.ids import IdIndex, pack_ids
from codetune.records import ScoreColumns
from codetune.selection.cost import SHOWN_EPOCHS, CostDocument, estimated_prompt_tokens, selection_cost
from codetune.selection.diagnostics import MapDocument, diagnose, histograms, map_document
from codetune.selection.mismatch import MismatchSummary, MismatchTest
from codetune.selection.row_vectors import Floats
from codetune.selection.select import SelectionResult
from codetune.selection.strategies import STRATEGIES, SelectionInputs
from codetune.stages.exclusions import Exclusions
from codetune.stages.score import WEIGHTS
from codetune.stages.stage import RunContext, StageResult
from codetune.store.examples import read_examples
from codetune.store.manifest import Manifest, read_manifest

DIAGNOSTICS = "diagnostics"  # fact of the selection: its report without clusters, mismatch test and map
MOST_CORRELATED = 0.5  # rank correlation of IFD with answer length, from which on it is a warning
MOST_REFUSED = 0.05  # share of the rows
SHOWN_CLUSTERS = 5


class ClusterDocument(TypedDict):
    """A `ClusterDiagnostics` as JSON, and the rows of the cluster that are set aside, by reason."""

    cluster: int | None
    rows: int
    refused: int
    filtered: int
    dropped: int
    eligible: int
    taken: int
    ifd_quantiles: tuple[float, ...] | None
    pmi_quantiles: tuple[float, ...] | None
    set_aside: int
    reasons: dict[str, int]


class SelectionReport(TypedDict):
    """selection.report.json. A figure that the strategy does not know is None."""

    strategy: str
    rows: int
    refused: dict[str, int]
    eligible: int
    taken: int
    clusters: Sequence[ClusterDocument]
    mismatch_test: MismatchSummary | None
    ifd_length_correlation: float | None
    cluster_distance: float | None
    novelsum: float | None
    novelsum_of_random_draw: float | None
    random_overlap: float
    random_overlap_by_chance: float
    cost: CostDocument | None
    instructions_cut: dict[str, int] | None
    histograms: dict[str, object]
    warnings: list[str]
    map: NotRequired[MapDocument | None]


def cluster_documents(
    inputs: SelectionInputs, result: SelectionResult, exclusions: Exclusions
) -> list[ClusterDocument]:
    """The counts and quantiles of each cluster, and its rows that are set aside by reason."""
    reasons = _filtered_by_cluster(inputs, exclusions)
    documents: list[ClusterDocument] = []
    for part in result.diagnostics:
        found = +Counter({"no score": part.refused, "mismatched pair": part.dropped})
        found.update(reasons.get(part.cluster, {}))
        documents.append(
            {
                "cluster": part.cluster,
                "rows": part.rows,
                "refused": part.refused,
                "filtered": part.filtered,
                "dropped": part.dropped,
                "eligible": part.eligible,
                "taken": part.taken,
                "ifd_quantiles": part.ifd_quantiles,
                "pmi_quantiles": part.pmi_quantiles,
                "set_aside": part.rows - part.eligible,
                "reasons": dict(sorted(found.items())),
            }
        )
    return documents


def make_report(
    context: RunContext,
    inputs: SelectionInputs,
    result: SelectionResult,
    clusters: Sequence[ClusterDocument],
    scores: ScoreColumns | None,
    test: MismatchTest | None,
) -> SelectionReport:
    """The content of selection.report.json."""
    settings, strategy = context.project.select, STRATEGIES[context.project.select.strategy]
    shuffled_pmi = None if scores is None else scores.shuffled_pmi[~np.isnan(scores.shuffled_pmi)]
    read = _manifest(context.run.examples if inputs.ifd is None else context.run.scores)
    figures = diagnose(inputs, result, context.project.seed)
    report: SelectionReport = {
        "strategy": settings.strategy,
        "rows": read.rows + sum(read.refused.values()),
        "refused": dict(read.refused),
        "eligible": len(result.eligible),
        "taken": len(result.taken),
        "clusters": clusters,
        "mismatch_test": test.summary() if test else None,
        "ifd_length_correlation": figures.ifd_length_correlation,
        "cluster_distance": figures.cluster_distance,
        "novelsum": figures.novelsum,
        "novelsum_of_random_draw": figures.novelsum_of_random_draw,
        "random_overlap": figures.random_overlap,
        "random_overlap_by_chance": figures.random_overlap_by_chance,
        "cost": _cost(context, inputs, result, scores),
        "instructions_cut": _cut(context) if strategy.needs_embeddings else None,
        "histograms": histograms(inputs, result, settings, shuffled_pmi),
        "warnings": [],
    }
    asked = settings.clusters if strategy.needs_embeddings else None
    report["warnings"] = warnings_of(report, asked if isinstance(asked, int) else None)
    report["map"] = map_document(inputs, result)
    return report


def diagnostics_fact(report: SelectionReport) -> dict[str, object]:
    """For the manifest, and so for `--json`: the report without what stands there under other names, and its map."""
    return {name: value for name, value in report.items() if name not in ("clusters", "mismatch_test", "map")}


def figure_lines(result: StageResult) -> list[str]:
    """The figures of a selection as lines, titles and values one below the other; those that are not known are left
    out, and so are all of a selection without diagnostics, as earlier versions made it."""
    if (found := result.facts.get(DIAGNOSTICS)) is None:
        return []
    cost, cut, distance = found["cost"], found["instructions_cut"], found["cluster_distance"]
    novelsum = [_decimals(found[name], 4) for name in ("novelsum", "novelsum_of_random_draw")]
    shares = f"{percent(found['random_overlap'])} (by chance {percent(found['random_overlap_by_chance'])})"
    figures = {
        "rank correlation of IFD with length": _decimals(found["ifd_length_correlation"], 2),
        "cluster shares moved": None if distance is None else f"{percent(distance)} (total variation)",
        "diversity (NovelSum)": None if None in novelsum else "{}, of a random draw {}".format(*novelsum),
        "in common with a random draw": shares,
        "instructions cut by embed.model": None if cut is None else f"{cut['cut']:,} of {cut['rows']:,}",
        **({} if cost is None else _cost_figures(cost)),
    }
    known = {title: value for title, value in figures.items() if value is not None}
    width = max(map(len, known))
    return [f"{title:<{width}}   {value}" for title, value in known.items()]


def warnings_of(report: SelectionReport, asked_clusters: int | None) -> list[str]:
    """What smells, each in a sentence."""
    found = _cluster_warnings(report["clusters"], asked_clusters)
    correlation, rows, refused = report["ifd_length_correlation"], report["rows"], report["refused"]
    if correlation is not None and abs(correlation) > MOST_CORRELATED:
        kind = "long" if correlation > 0 else "short"
        found.append(
            f"IFD follows the length of the answer (rank correlation {correlation:.2f}): a selection by IFD prefers "
            f"{kind} answers. Compare it with select.strategy length"
        )
    faults = without_repeats(refused)
    if sum(faults.values()) > MOST_REFUSED * rows:
        found.append(
            f"{percent(sum(faults.values()) / rows)} of the rows are refused ({counts(faults)}): look at "
            "selection.excluded.jsonl before you trust the rest"
        )
    test = report["mismatch_test"]
    return [*found, *([] if test is None or test["has_power"] else [sharpness(test)])]


def without_repeats(refused: Mapping[str, int]) -> dict[str, int]:
    """Reason -> rows, of the rows that are refused for what they are."""
    return {reason: count for reason, count in refused.items() if not _is_repeat(reason)}


def sharpness(test: MismatchSummary) -> str:
    """How far the mismatch test can be trusted, in a sentence."""
    found = f"{percent(test['caught'])} of {test['pairs']} shuffled pairs"
    if test["has_power"]:
        return f"mismatch test: it catches {found}"
    return (
        f"mismatch test: it has no power and dropped no row: it would catch {found}, and call "
        f"{percent(test['estimated_mismatched'])} of the rows mismatched. The model that scores hardly reads these "
        "instructions, and its IFD means little; a stronger score.model may"
    )


def _filtered_by_cluster(inputs: SelectionInputs, exclusions: Exclusions) -> dict[int | None, Counter[str]]:
    """The rows that repeat others, hold tasks or fail a check, by cluster and kind of reason."""
    ids, kinds, index = pack_ids(exclusions.why), exclusions.kinds(), IdIndex(inputs.ids)
    found: dict[int | None, Counter[str]] = {}
    is_known = index.holds(ids)
    positions = iter(index.positions(ids[is_known]).tolist())
    for kind, known in zip(kinds, is_known.tolist(), strict=True):
        if known:
            at = next(positions)
            label = None if inputs.cluster is None else int(inputs.cluster[at])
            found.setdefault(label, Counter())[kind] += 1
    return found


def _cost(
    context: RunContext, inputs: SelectionInputs, result: SelectionResult, scores: ScoreColumns | None
) -> CostDocument | None:
    if scores is None or inputs.answer_tokens is None:
        return None
    ids = IdIndex(scores.ids)
    prompts, answers = _characters(context, inputs.ids)
    is_pair = ~np.isnan(scores.shuffled_pmi[ids.positions(inputs.ids)])
    tokens = estimated_prompt_tokens(prompts, answers, inputs.answer_tokens)
    cost = selection_cost(tokens, inputs.answer_tokens, result.taken, is_pair, 1 if inputs.pmi is None else 2)
    return None if cost is None else cost.document(_manifest(context.run.scores).facts.get(WEIGHTS))


def _characters(context: RunContext, ids: NDArray[np.uint64]) -> tuple[Floats, Floats]:
    """The characters of each row before its answer, and those of the answer."""
    read, lengths = array("Q"), array("d")
    for row in read_examples(context.run):
        read.append(int(row.id, 16))
        lengths.extend((len(row.instruction), len(row.answer)))
    order = IdIndex(np.frombuffer(read, dtype=np.uint64)).positions(ids)
    prompts, answers = np.frombuffer(lengths, dtype=np.float64).reshape(-1, 2)[order].T
    return prompts, answers


def _cut(context: RunContext) -> dict[str, int]:
    manifest = _manifest(context.run.embeddings)
    return {"cut": manifest.facts["cut"], "rows": manifest.rows}


def _manifest(path: Path) -> Manifest:
    manifest = read_manifest(path)
    assert manifest is not None  # of an input
    return manifest


def _cost_figures(cost: CostDocument) -> dict[str, str]:
    epochs = {name: cost["saved_share"][str(name)] for name in SHOWN_EPOCHS}
    saved = ", ".join(f"{percent(share)} of {quantity(name, 'epoch')}" for name, share in epochs.items())
    even = cost["break_even_epochs"]
    flops = cost["flops"]
    return {
        "tokens (estimated)": f"{cost['tokens_taken']:,} of {cost['tokens']:,}",
        **({} if flops is None else {"FLOPs of scoring": f"{flops['scoring']:.2g}"}),
        **({} if flops is None else {"FLOPs of an epoch": _flops_of_an_epoch(flops)}),
        "saved, scoring included": saved,
        "scoring is paid for after": "never" if even is None else f"{even:.2f} epochs of training",
    }


def _flops_of_an_epoch(flops: Mapping[str, float]) -> str:
    return f"{flops['training_epoch_on_selection']:.2g}, on all rows {flops['training_epoch_on_all']:.2g}"


def _cluster_warnings(clusters: Sequence[ClusterDocument], asked: int | None) -> list[str]:
    found = []
    if asked is not None and len(clusters) < asked:
        found.append(
            f"{asked - len(clusters)} of {asked} clusters are empty: fewer instructions differ than select.clusters "
            f"says. Set it to {len(clusters)} or less"
        )
    without = [cluster for cluster in clusters if not cluster["taken"]]
    if without and len(clusters) > 1:
        named = ", ".join(str(cluster["cluster"]) for cluster in without[:SHOWN_CLUSTERS])
        more = f" and {len(without) - SHOWN_CLUSTERS} more" if len(without) > SHOWN_CLUSTERS else ""
        rows, eligible = (sum(cluster[name] for cluster in without) for name in ("rows", "eligible"))
        found.append(
            f"no row is taken from {'cluster' if len(without) == 1 else 'clusters'} {named}{more}, of "
            f"{quantity(rows, 'row')} there {eligible:,} {'is' if eligible == 1 else 'are'} eligible: raise "
            "select.ratio, or lower select.clusters"
        )
    return found


def _is_repeat(reason: str) -> bool:
    return reason.startswith(("duplicate", "differs"))


def _decimals(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
