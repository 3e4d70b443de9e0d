"""What the results of a suite come to, in plain sentences; never more than they hold."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ...report.verdict import Sentence

Results: TypeAlias = Mapping[str, Mapping[str, Any]]

_CLASSIFIERS = {
    "knn": "k-NN", "linear": "The linear probe", "finegrained": "Logistic regression",
}  # fmt: skip


def judge_results(results: Results) -> list[Sentence]:
    """Sentences on the results, the most important first.

    Args:
        results: As in `SuiteRun.results`.

    Examples:
        >>> knn = {"protocol": "knn", "best": 35.7, "best_k": 20, "num_classes": 10}
        >>> [sentence.text for sentence in judge_results({"knn/digits": knn})]
        ['k-NN puts 35.7 % of digits into their class (guessing: 10 %).']
    """
    found = [*_classification(results), *_dense(results), *_agreement(results)]
    found += _worst(results)
    failed = [key for key, one in results.items() if "error" in one]
    if failed:
        some = ", ".join(failed[:5]) + (" …" if len(failed) > 5 else "")
        what = f"{len(failed)} of {len(results)} measurements failed: {some}."
        found.insert(0 if len(failed) == len(results) else len(found), Sentence(what, "warning"))
    if any(one.get("subset") for one in results.values() if "error" not in one):
        found.append(
            Sentence(
                "Some sets are parts of public ones: their numbers compare models with each other, "
                "not with published ones.",
                "unknown",
            )
        )
    return found or [Sentence("Nothing was measured.", "unknown")]


def _of(results: Results, protocol: str) -> dict[str, Mapping[str, Any]]:
    """Name of the set -> result, of those that were measured."""
    return {
        key.partition("/")[2]: one
        for key, one in results.items()
        if key.partition("/")[0] == protocol and "error" not in one
    }


def _classification(results: Results) -> Iterable[Sentence]:
    for protocol, name in _CLASSIFIERS.items():
        ones = _of(results, protocol)
        scores = {key: one.get("best", one.get("score")) for key, one in ones.items()}
        known = {key: float(score) for key, score in scores.items() if score is not None}
        if not known:
            continue
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        if len(known) > 1:
            mean = sum(known.values()) / len(known)
            counts = [ones[key].get("num_classes") for key in known]
            guess = sum(100 / count for count in counts if count) / len(counts)
            beside = f" (guessing: {guess:.2g} %)" if all(counts) else ""
            yield Sentence(
                f"{name} scores {mean:.1f} %{beside} on average over {len(known)} sets, from "
                f"{known[low]:.1f} % ({low}) to {known[high]:.1f} % ({high}).",
                "finding",
            )
            continue
        classes = ones[low].get("num_classes")
        if protocol == "finegrained" or not classes:
            yield Sentence(f"{name} scores {known[low]:.1f} % on {low}.", "finding")
            continue
        yield Sentence(
            f"{name} puts {known[low]:.1f} % of {low} into their class "
            f"(guessing: {100 / classes:.2g} %).",
            "finding",
        )


def _dense(results: Results) -> Iterable[Sentence]:
    for protocol in ("segmentation", "segmentation-finetune"):
        for name, one in _of(results, protocol).items():
            if one.get("miou") is not None:
                yield Sentence(
                    f"Segmentation of {name}: mIoU {100 * one['miou']:.1f} %.", "finding"
                )
    for protocol in ("depth", "depth-finetune"):
        for name, one in _of(results, protocol).items():
            if one.get("rmse") is not None:
                yield Sentence(f"Depth on {name}: off by {one['rmse']:.2f} m (RMSE).", "finding")


def _agreement(results: Results) -> Iterable[Sentence]:
    for name, one in _of(results, "agreement").items():
        known = [("cosine of class tokens", one.get("distances", {}).get("cls_cosine")),
                 ("CKA of class tokens", one.get("cka_cls"))]  # fmt: skip
        told = [f"{what} {value:.3f}" for what, value in known if value is not None]
        if told:
            yield Sentence(
                f"Agreement with the teacher on {name}: {', '.join(told)} (1 = alike).", "finding"
            )


def _worst(results: Results) -> Iterable[Sentence]:
    """The one class that is hardest, of all sets that k-NN was run on."""
    rows = [
        (row["right"] / row["of"], name, row)
        for name, one in _of(results, "knn").items()
        for row in one.get("mistakes", {}).get("worst", [])[:1]
    ]
    if rows:
        _, name, row = min(rows, key=lambda found: found[0])
        yield Sentence(
            f"Hardest for k-NN is {row['class']!r} of {name}: {row['right']} of {row['of']} right, "
            f"the others mostly taken for {row['taken_for']!r}.",
            "finding",
        )
