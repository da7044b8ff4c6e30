"""The training input `gen_particles`: what the generator knows of a jet, JetClass-II's list `aux_genpart_*`.

A network that learns from it names it in its `training_inputs`, and it is then read beside the inputs of the data YAML;
the YAML describes what a jet is fed to the network with for ever after, without any truth, and weaver reads it. A YAML
whose data have the truth under other names makes these columns in `new_variables`, or has the input itself.
"""

from __future__ import annotations

from jetfoundry.features.data_config import InputGroup, InputVariable

__all__ = ["GEN_COLUMNS", "GEN_INPUT", "JET_ID"]

GEN_COLUMNS: tuple[str, ...] = (
    "aux_genpart_pt", "aux_genpart_eta", "aux_genpart_phi", "aux_genpart_mass", "aux_genpart_pid",
    "aux_genpart_isResX", "aux_genpart_isResY", "aux_genpart_isResDecayProd", "aux_genpart_isTauDecayProd",
    "aux_genpart_isQcdParton",
)  # fmt: skip
"""Its channels (b, 10, G), in order: GeV, rad, PDG number, 0-1 flags; padding is zero, so is its pT."""

GEN_INPUT = InputGroup(
    name="gen_particles",
    length=24,  # 16 in the 60 public jets, 18 in 200,000 simulated ones
    pad_mode="constant",
    variables=tuple(InputVariable(name=name) for name in GEN_COLUMNS),
)

JET_ID = ("source_file", "source_entry")
"""Columns of provenance that are equal for equal jets: sampling may draw one several times."""
