import pyarrow.parquet as pq

from jetfoundry.schema import COLUMNS, arrow_schema, column_group


def test_there_are_54_columns_each_with_a_meaning():
    assert len(COLUMNS) == len({column.name for column in COLUMNS}) == 54
    assert all(column.meaning for column in COLUMNS)


def test_schema_equals_that_of_the_real_example_file(shared):
    real = pq.read_schema(shared / "data" / "jetclass2" / "jetclass2_real_60.parquet").remove_metadata()
    assert real.equals(arrow_schema())


def test_momenta_and_masses_carry_gev_and_impact_parameters_mm():
    units = {column.name: column.unit for column in COLUMNS}
    assert {units[name] for name in ("part_px", "jet_pt", "jet_sdmass", "aux_genpart_mass")} == {"GeV"}
    assert {units[name] for name in ("part_d0val", "part_dzerr", "genpart_x")} == {"mm"}


def test_only_jagged_columns_have_a_group():
    assert {column_group(column.name) for column in COLUMNS if column.jagged} == {"part", "genpart", "aux_genpart"}
    assert {column_group(column.name) for column in COLUMNS if not column.jagged} == {""}
