"""Score any ROOT or Parquet files of jets: one row for each jet, in input order, into Parquet or ROOT.

Ray Data reads entry ranges, a pool of actors holds the network, results come back in order and are written as they
come (score_output.py). Columns of the result: `source_file` (index into the inputs of the file), `source_entry`, the
data YAML's jet-level observers as far as the input has them, `scored`, `scores` (C, softmax), `latent` (D), and one for
each discriminant of a YAML file (evaluate/named_discriminants.py). Jets outside the selection of the model's data YAML
have a row, too, with NaN. The input needs no truth.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from jetfoundry import config, files
from jetfoundry.data.inventory import Inventory, expand, take_inventory
from jetfoundry.data.layouts import Layout, LayoutColumn, load_layout
from jetfoundry.data.root import open_jets
from jetfoundry.downstream.score_block import WRITE, ScoreBlock, open_scorer
from jetfoundry.downstream.score_output import Format, Output, is_there, plan_outputs, read_about, writing
from jetfoundry.downstream.scoring import Network
from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.evaluate.event_sums import first_of_event, whole_events
from jetfoundry.evaluate.named_discriminants import NamedDiscriminants, load_discriminants
from jetfoundry.ray_session import RayConfig, raise_own

__all__ = ["ScoreConfig", "score_files"]

_PROVENANCE = ("source_file", "source_entry")
_PT = "jet_pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What to score with what."""

    model: str = config.option("runs/demo", "run folder, model.pt, or an exported .onnx file")
    input: tuple[str, ...] = config.option((), "ROOT or Parquet files: paths, patterns, folders, URLs; sorted by path")
    tree: str = config.option("", "TTree or RNTuple in the ROOT files, '' = the only one")
    schema: str = config.option("", "schema YAML of the input's columns, '' = JetClass-II")
    output: str = config.option("scores.parquet", "one .parquet or .root file, or a folder with a file for each input")
    format: Format = config.option("", "root or parquet, '' = by the name of the file, in a folder as the input")
    write: tuple[str, ...] = config.option(
        ("scores", "latent"), "arrays to write, e.g. [log_scores]: scores (softmax), log_scores (its ln), latent"
    )
    tokens: tuple[str, ...] = config.option(
        (), "class tokens whose latents to write, as latent_<token>, e.g. [contrastive]; none = the first one's, latent"
    )
    observers: tuple[str, ...] = config.option(
        (), "further columns of the input to copy, one number per jet, e.g. [jet_label]"
    )
    discriminants: str = config.option("", "YAML file of discriminants, e.g. datasets/discriminants/sophon.yaml")
    all_jets: bool = config.option(False, "score jets outside the selection of the model's data YAML, too")
    workers: int = config.option(1, "actors that hold the network")
    device: str = config.option("cpu", "cpu or cuda (PyTorch models)")
    ray: RayConfig = config.option(RayConfig(), "")

    def __post_init__(self) -> None:
        for name in self.write:
            if name not in WRITE:
                msg = f"write: {name!r} is unknown; {nearest(name, WRITE)}"
                raise ValueError(msg)


def score_files(options: ScoreConfig) -> dict[str, Any]:
    """Score all jets of the inputs; returns the numbers of jets read and scored, and of files written and kept.

    Raises InputError for inputs that cannot be read or lack a column, and for an output that is there and is not of the
    same model, inputs and options; ConfigError for discriminants that the model's classes do not have.
    """
    from jetfoundry.loading.datasource import JetDatasource  # needs Ray Data

    network = open_scorer(options.model, "cpu", options.all_jets, options.tokens)  # the GPU, if any, is the actors'
    named = load_discriminants(options.discriminants, network.classes)
    layout = _with_events(load_layout(options.schema), named.event)
    paths = [file.path for file in expand(options.input)]
    observers = _observers(options, network, named, layout, paths[0])
    ordering = [_PT] if named.of_event else []
    columns = sorted({*network.data.input_columns, *observers, *ordering} - {*_PROVENANCE})
    inventory = take_inventory(paths, tree=options.tree, columns=columns, layout=layout)
    if inventory.set_aside:
        raise InputError(inventory.set_aside[0].reason)
    about = {
        "classes": network.classes,
        "model_hash": network.hash,
        "discriminants": named.definitions(network.classes),
    }
    made_of = {
        "model": network.hash,
        "data_yaml": network.data.hash,
        "columns": [*observers, *options.write, *options.tokens],
        "discriminants": config.fingerprint(about["discriminants"]),
        "all_jets": options.all_jets,
        "schema": config.fingerprint(layout.to_dict()),
        "tree": options.tree,
    }
    outputs = plan_outputs(options.output, options.format, inventory.sources, about, made_of)
    todo = [output for output in outputs if not is_there(output)]
    if todo:
        sources = tuple(source for output in todo for source in output.sources)
        scorer = {
            "network": (str(files.place(options.model).resolve()), options.device, options.all_jets, options.tokens),
            "write": options.write,
            "named": named,
            "carried": list(dict.fromkeys([*_PROVENANCE, *observers, *ordering])),
        }
        blocks = _scored_blocks(JetDatasource(Inventory(sources, ()), columns, layout=layout), scorer, options)
        _write(blocks, todo, named, set(ordering) - set(observers))
    counts: collections.Counter[str] = collections.Counter()
    for output in outputs:
        counts.update(json.loads(read_about(output.path)["counts"]))
    return {
        **{name: counts[name] for name in ("jets", "scored", "not_selected", "not_finite")},
        "model_hash": network.hash,
        "inputs": [source.path for source in inventory.sources],
        "output": options.output,
        "files_written": len(todo),
        "files_kept": len(outputs) - len(todo),
    }


def _with_events(layout: Layout, event: Sequence[str]) -> Layout:
    """The layout with the columns that name an event, as 64-bit integers, unless it has them."""
    if wrong := [name for name in event if name in _PROVENANCE]:
        msg = f"event: {wrong[0]} is where a jet comes from; wanted columns of the input that tell events apart"
        raise ConfigError(msg)
    known = {column.name: column for column in layout.columns}
    for name in event:
        if name in known and (known[name].jagged or known[name].kind not in ("int32", "int64")):
            msg = f"event: {name} is no number of an event, the schema has it as {known[name].arrow_type}"
            raise ConfigError(msg)
    more = [
        LayoutColumn(name=name, kind="int64", jagged=False, unit="", meaning="event", group="", branches=(name,))
        for name in event
        if name not in known
    ]
    return dataclasses.replace(layout, columns=(*layout.columns, *more))


def _observers(
    options: ScoreConfig, network: Network, named: NamedDiscriminants, layout: Layout, path: str
) -> list[str]:
    """Columns to copy: the model's jet-level observers that the input has, those asked for, the names of an event."""
    with open_jets(path, tree=options.tree, layout=layout) as first:
        there = set(first.names)
    for name in named.event:
        (column,) = layout.select([name])
        if column.branches[0] not in there:
            summed = next(iter(named.of_event))
            msg = (
                f"{path}: no column {column.branches[0]!r}, which {options.discriminants} wants to tell the events of "
                f"{summed} apart; {nearest(column.branches[0], there)}"
            )
            raise InputError(msg)
    if lists := [column.name for column in layout.select(options.observers) if column.jagged]:
        msg = f"observers: {lists[0]} has one value per particle, wanted one per jet"
        raise ConfigError(msg)
    has = {column.name for column in layout.columns if not column.jagged and there.issuperset(column.branches)}
    usual = [name for name in network.data.observers if name in has]
    found = [name for name in dict.fromkeys([*usual, *options.observers, *named.event]) if name not in _PROVENANCE]
    if both := set(named.names) & {*found, *_PROVENANCE, *WRITE, "scored", _PT}:
        msg = f"{options.discriminants}: {min(both)!r} is the name of another column; rename the discriminant"
        raise ConfigError(msg)
    return found


def _scored_blocks(source: Any, scorer: dict[str, Any], options: ScoreConfig) -> Iterator[pa.Table]:
    """Tables of `ScoreBlock`, in the order of files and entries; `source_file` is an index into the inventory."""
    import ray.data
    import ray.exceptions

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    jets = ray.data.read_datasource(source, override_num_blocks=len(source.get_read_tasks(1)))
    scored = jets.map_batches(
        ScoreBlock,
        fn_constructor_kwargs=scorer,
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=1,
        num_gpus=1 if options.device == "cuda" else 0,
    )
    try:
        yield from scored.iter_batches(batch_format="pyarrow", batch_size=None)
    except ray.exceptions.RayError as error:
        raise_own(error)
        raise


def _write(
    blocks: Iterable[pa.Table], outputs: Sequence[Output], named: NamedDiscriminants, drop: Iterable[str]
) -> None:
    """Write the tables of scored jets, which come file after file, into the outputs, each with its counts of jets."""
    places = [(output, index) for output in outputs for index in range(len(output.sources))]
    paths = [output.sources[index].path for output, index in places]
    tables = whole_events(blocks, named.event, names=paths) if named.of_event else blocks
    pieces = (found for table in tables for found in _by_file(table))
    with tqdm(unit=" jets", unit_scale=True, desc="score") as bar:
        for output, group in itertools.groupby(pieces, key=lambda found: places[found[0]][0]):
            counts: collections.Counter[str] = collections.Counter()
            with writing(output) as sink:
                for number, piece in group:
                    scored, bad = (int(piece[name].to_numpy().sum()) for name in ("scored", "not_finite"))
                    refused = piece.num_rows - scored - bad
                    counts.update(jets=piece.num_rows, scored=scored, not_selected=refused, not_finite=bad)
                    finished = _with_discriminants(piece, named).drop_columns(["not_finite", *drop])
                    place = pa.array(np.full(piece.num_rows, places[number][1], np.int32))
                    sink.add(finished.set_column(finished.column_names.index("source_file"), "source_file", place))
                    bar.update(piece.num_rows)
                sink.about["counts"] = json.dumps(counts)


def _by_file(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    file = table["source_file"].to_numpy()
    edges = [*np.flatnonzero(np.diff(file, prepend=-1)), len(file)]
    for start, stop in itertools.pairwise(edges):
        yield int(file[start]), table.slice(start, stop - start)


def _with_discriminants(table: pa.Table, named: NamedDiscriminants) -> pa.Table:
    """The log-odds that came with the jets, as they are to be stored, and sums over the jets of an event."""
    if not named.of_jet:
        return table
    log_odds = {name: table[name].to_numpy() for name in named.of_jet}
    first = first_of_event([table[name].to_numpy() for name in named.event]) if named.of_event else None
    pt = table[_PT].to_numpy() if named.of_event else ()
    table = table.drop_columns(list(named.of_jet))
    for name, values in named.columns(log_odds, pt, first).items():
        table = table.append_column(name, pa.array(values))
    return table
