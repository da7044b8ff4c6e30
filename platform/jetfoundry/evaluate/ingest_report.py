"""`report.html` of a shard folder: what was ingested, for people who would rather look.

Everything but the feature histograms comes from the manifest and the sidecars of the units; those come from at most
10,000 jets of row groups spread over the shards, which are mixed, so any of them is a fair sample. The shards are
complete before this page is made, and it changes none of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jetfoundry import config, files
from jetfoundry.data import shards
from jetfoundry.data.delphes_jets import LEFT_OUT
from jetfoundry.errors import JetFoundryError
from jetfoundry.evaluate import ingest_plots, mixing, plots
from jetfoundry.evaluate.ingest_plots import Families, families_of
from jetfoundry.evaluate.report import Section, render
from jetfoundry.evaluate.tables import Rows
from jetfoundry.labels import CLASSES

__all__ = ["write"]

_SAMPLED = 10_000  # jets for the feature histograms
_LISTED = 40  # files listed
_KEYS = (*shards.MANIFEST_KEYS, "inputs", "set_aside", "histogram_edges", "plan", "cpu_seconds", "provenance")


def write(folder: str | Path, features: str = "") -> Path:
    """Write report.html into a shard folder; `features` is the data YAML whose inputs are shown. Returns its path.

    Raises InputError if there is no manifest, or a sidecar or shard that it names cannot be read.
    """
    root = files.place(folder)
    manifest = shards.read_manifest(root, _KEYS)
    manifest.setdefault("classes", list(CLASSES))  # not there in manifests of older versions
    families = families_of(manifest["classes"])
    sample = manifest["sample"]
    sections = [
        _result(root, manifest),
        _classes(manifest, families),
        _planes(manifest, families),
        _features(root, features, families, sample),
        _mixing(root, manifest),
        _set_aside(root, manifest),
        _inputs(manifest),
        _every_class(manifest),
    ]
    origin: dict[str, Any] = {"content (manifest hash)": manifest["hash"], "plan": manifest["plan"]}
    origin |= manifest["provenance"]
    if (root / "config.yaml").exists():
        origin["configuration"] = config.load_yaml(root / "config.yaml")
    page = render(f"Ingest {root.resolve().name}", sample, sections, origin)
    files.write_text(root / "report.html", page)
    return root / "report.html"


def _result(root: Path, manifest: Mapping[str, Any]) -> Section:
    rows = []
    for split, part in manifest["splits"].items():
        size = sum(record["bytes"] for record in part["shards"])
        jets = part["rows"]
        rows.append({"split": split, "jets": jets, "shards": len(part["shards"]), "MB": size / 1e6,
                     "bytes per jet": size / jets if jets else None})  # fmt: skip
    jets = sum(row["jets"] for row in rows)
    text = f"{jets:,} jets from {len(manifest['inputs']):,} files, "
    text += f"{jets / max(manifest['cpu_seconds'], 1e-9):,.0f} jets per CPU-second. "
    if (root / "summary.json").exists():
        run = files.read_json(root / "summary.json")
        if run.get("new_jets"):
            text += f"The last run wrote {run['new_jets']:,} of them in {run['seconds']:,.1f} s"
            text += f" ({run['jets_per_second']:,.0f} jets/s, the start of Ray included). "
    text += "train, val and test are drawn by a hash of file name and entry: they stay when files are added."
    return Section("Result", text, rows)


def _classes(manifest: Mapping[str, Any], families: Families) -> Section:
    splits = manifest["splits"]
    counts = {split: np.asarray(part["class_counts"], np.int64) for split, part in splits.items()}
    total = np.sum(list(counts.values()), axis=0)
    rows = [
        {"kind": family, **{split: int(column[list(members)].sum()) for split, column in counts.items()},
         "classes with jets": f"{np.count_nonzero(total[list(members)])} of {len(members)}"}
        for family, members in families.items()
    ]  # fmt: skip
    figure = plots.class_counts(dict(zip(manifest["classes"], total.tolist(), strict=True)), manifest["sample"])
    return Section("Classes", "", rows, [("Jets of each class, all splits.", plots.png(figure, dpi=144))])


def _planes(manifest: Mapping[str, Any], families: Families) -> Section:
    bins = np.sum([shards.unpack_counts(part["histogram"]) for part in manifest["splits"].values()], axis=0)
    jets = sum(part["rows"] for part in manifest["splits"].values())
    edges = manifest["histogram_edges"]
    outside = jets - int(bins.sum())
    text = "The bins in which reweighting flattens the spectrum; white bins hold no jet."
    text += f" {outside:,} jets ({outside / jets:.1%}) lie outside of them and are not shown."
    planes = {family: bins[list(members)].sum(axis=0) for family, members in families.items()}
    figure = ingest_plots.planes(planes, edges["jet_pt"], edges["jet_sdmass"], manifest["sample"])
    return Section("Transverse momentum and mass", text, None, [("Jets per bin.", plots.png(figure, dpi=144))])


def _features(root: Path, features: str, families: Families, sample: str) -> Section:
    groups: list[ingest_plots.ColumnGroup] = []
    jets, text = 0, ""
    if features:
        try:
            groups, jets = ingest_plots.inputs_of(features, families, lambda columns: _sample_jets(root, columns))
            text = f"Inputs of {Path(features).name} as the network gets them, standardised and clipped"
        except JetFoundryError as error:
            text = f"The inputs of {Path(features).name} could not be computed: {error}\n\n"
    if not groups:
        names = ingest_plots.main_columns(shards.read_row_group(_groups(root)[0]).schema.names)
        table = pa.concat_tables(_sample_jets(root, [*names, "jet_label"])).combine_chunks()
        groups, jets = [ingest_plots.columns_of(table, names, families)], table.num_rows
        text += "Columns as they are stored"
    text += f", of {jets:,} jets from all over the shards. Each kind is normalised to one; the outer bins hold what "
    text += "lies beyond."
    figures = [
        (group.caption, plots.png(ingest_plots.histograms(group, sample), dpi=120)) for group in groups if group.columns
    ]
    return Section("Features", text, None, figures)


def _groups(root: Path) -> list[shards.RowGroup]:
    """Row groups spread evenly over the largest split."""
    groups = max((shards.open_shards(root, split).row_groups for split in shards.SPLITS), key=len)
    number = max(1, min(len(groups), _SAMPLED // max(groups[0].rows, 1)))
    return [groups[i] for i in np.linspace(0, len(groups) - 1, number).astype(int)]


def _sample_jets(root: Path, columns: list[str]) -> Iterator[pa.Table]:
    left = _SAMPLED
    for group in _groups(root):
        if left > 0:
            yield shards.read_row_group(group, columns).slice(0, left)
        left -= group.rows


def _mixing(root: Path, manifest: Mapping[str, Any]) -> Section:
    sidecars = files.for_each(files.read_json, sorted((root / "units").glob("*.json")), root)
    records = [record for sidecar in sidecars for record in sidecar["shards"]]
    counts = np.array([record["class_counts"] for record in records], np.int64)
    total = counts.sum(axis=0)
    p = mixing.class_mix(counts)
    p = p[np.isfinite(p)]
    text = "Is every shard a fair draw from the whole input? χ² compares the class mix of each shard with that of all; "
    text += "p-values near 0 would say that a shard is not mixed. The longest run of equal labels is compared with that"
    text += " of shuffled labels."
    rows: list[dict[str, Any]] = []
    if len(p):
        rows += [{"figure": "shards compared", "value": len(p)},
                 {"figure": "χ² p-value, lowest", "value": float(p.min())},
                 {"figure": "lowest of as many fair draws, median", "value": float(1 - 0.5 ** (1 / len(p)))},
                 {"figure": "χ² p-value, median", "value": float(np.median(p))}]  # fmt: skip
    labels = [shards.read_row_group(group, ["jet_label"]).column(0).to_numpy() for group in _groups(root)]
    longest = [mixing.longest_run(group) for group in labels]
    fractions = total / total.sum()
    expected = mixing.expected_longest_run(fractions, int(np.mean([len(group) for group in labels])))
    rows += [{"figure": "row groups looked into", "value": len(labels)},
             {"figure": "longest run of equal labels, mean", "value": float(np.mean(longest))},
             {"figure": "the same of shuffled labels, expected", "value": expected}]  # fmt: skip
    return Section("Mixing", text, rows)


def _set_aside(root: Path, manifest: Mapping[str, Any]) -> Section:
    found = manifest["set_aside"]
    examples = _examples(root, {*found["jets"], *found["left_out"], *(["unreadable"] if found["entries"] else [])})
    rows: list[dict[str, Any]] = [
        {"what": "file", "reason": "", "number": 1, "example": file["reason"]} for file in found["files"][:_LISTED]
    ]
    if found["entries"]:
        rows.append({"what": "entries", "reason": "unreadable", "number": found["entries"]})
    rows += [{"what": "jets", "reason": reason, "number": count} for reason, count in found["jets"].items()]
    rows += [
        {"what": "left out by the rules", "reason": LEFT_OUT.get(reason, reason), "number": count}
        for reason, count in found["left_out"].items()
    ]
    reasons = ["", *["unreadable"] * bool(found["entries"]), *found["jets"], *found["left_out"]]
    for row, reason in zip(rows[len(found["files"][:_LISTED]) :], reasons[1:], strict=True):
        row["example"] = examples.get(reason, "")
    text = "Nothing: every jet of every input is in a shard." if not rows else ""
    if rows:
        text = "What could not be used. Every single one is named in units/*.set-aside.jsonl."
    if len(found["files"]) > _LISTED:
        text += f" {len(found['files']) - _LISTED} more files are in manifest.json."
    return Section("Set aside", text, rows or None)


def _examples(root: Path, reasons: set[str]) -> dict[str, str]:
    """One jet, event or range for each reason, in words."""
    found: dict[str, str] = {}
    for path in sorted((root / "units").glob("*.set-aside.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                fault = json.loads(line)
                if fault["reason"] not in found:
                    field = f", {fault['field']}" if fault["field"] else ""
                    found[fault["reason"]] = f"{fault['file']}, entry {fault['entry']}{field}: {fault['value']}"
                if reasons <= found.keys():
                    return found
    return found


def _inputs(manifest: Mapping[str, Any]) -> Section:
    inputs = manifest["inputs"]
    rows = [{"file": i["path"], "kind": i["kind"], "tree": i["tree"] or None, "entries": i["entries"]} for i in inputs]
    text = f"{len(rows):,} files with {sum(row['entries'] for row in rows):,} entries."
    if len(rows) > _LISTED:
        text += f" The first {_LISTED} are listed; all are in manifest.json."
    return Section("Inputs", text, rows[:_LISTED])


def _every_class(manifest: Mapping[str, Any]) -> Section:
    counts = {split: part["class_counts"] for split, part in manifest["splits"].items()}
    rows: Rows = [
        {"label": str(index), "class": name, **{split: column[index] for split, column in counts.items()}}
        for index, name in enumerate(manifest["classes"])
        if any(column[index] for column in counts.values())
    ]
    return Section("Every class", "Jets of each class; classes without jets are not listed.", rows)
