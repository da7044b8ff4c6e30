import dataclasses
from typing import Literal

import pytest
import yaml

from jetfoundry import cli, config
from jetfoundry.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = config.option(1e-3, "learning rate")
    name: Literal["adam", "sgd"] = config.option("adam", "optimiser")

    def __post_init__(self):
        if self.lr <= 0:
            msg = f"lr must be > 0, got {self.lr}"
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    data: str = config.option("here", "folder")
    epochs: int = config.option(3, "number of epochs")
    edges: tuple[float, ...] = config.option((1.0,), "edges [GeV]")
    fast: bool = config.option(False, "skip something")
    optim: Optim = config.option(Optim(), "")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("epochs: 5\noptim: {lr: 1e-2}\n")
    return path


def test_overrides_win_over_the_file_and_the_file_over_defaults(recipe):
    job = config.read(Job, recipe, ["optim.name=sgd", "data=there", "edges=[1, 2.5]"])
    assert job == Job(data="there", epochs=5, edges=(1.0, 2.5), optim=Optim(lr=0.01, name="sgd"))


def test_a_number_written_as_1e_minus_2_is_a_number(recipe):
    assert config.read(Job, recipe, ["optim.lr=3e-4"]).optim.lr == 3e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", r"job.yaml: unknown key 'epoch'; nearest: epochs"),
        ("optim.lrr=3", r"unknown key 'optim.lrr'; nearest: lr"),
        ("epochs=many", r"epochs: wanted int, got 'many'"),
        ("epochs=2.5", r"epochs: wanted int, got 2.5"),
        ("fast=1", r"fast: wanted bool, got 1"),
        ("optim.name=adm", r"optim.name: wanted one of adam, sgd, got 'adm'; nearest: adam"),
        ("optim.lr=-1", r"optim: lr must be > 0, got -1.0"),
        ("optim=3", r"optim: wanted a mapping, got 3"),
        ("epochs", r"wanted key.sub=value"),
    ],
)
def test_bad_values_are_errors_that_name_file_key_wanted_and_came(recipe, override, message):
    with pytest.raises(ConfigError, match=message):
        config.read(Job, recipe, [override])


def test_a_key_given_twice_is_an_error(tmp_path):
    (tmp_path / "job.yaml").write_text("epochs: 1\nepochs: 2\n")
    with pytest.raises(ConfigError, match="line 2: key 'epochs' is given twice"):
        config.read(Job, tmp_path / "job.yaml")


def test_a_key_given_twice_in_an_argument_is_an_error():
    with pytest.raises(ConfigError, match=r"argument 'optim={lr: 1, lr: 2}': line 1: key 'lr' is given twice"):
        config.parse_overrides(["optim={lr: 1, lr: 2}"])


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("epochs: 1\nclasses: [a, b\noptim: 3\n", r"line 3, column 6: .*',' or '\]'"),
        ("epochs: 1\n  fast: true\n", "line 2, column 7: mapping values are not allowed"),
        ("epochs: *few\n", "line 1, column 9: found undefined alias"),
        ("epochs: !!python/object:os.x {}\n", "line 1, column 9: could not determine a constructor"),
        ("epochs: !!timestamp x\n", "line 1, column 9: 'x' is no timestamp"),
        ("epochs: 2026-13-45\n", "line 1, column 9: '2026-13-45' is no timestamp"),
        (f"epochs: {2**80}\n", "line 1, column 9: '1208925819614629174706176' is no int"),
        ("epochs: &a [*a]\n", r"line 1: \*a is a part of itself"),
        ("epochs: " + "[" * 200_000, "line 1: more than 100 levels deep"),
        ("- " * 200_000 + "a", "line 1: more than 100 levels deep"),
        (LAUGHS, "line 7: too large"),
    ],
)
def test_what_is_not_yaml_is_one_line_with_file_and_place(tmp_path, text, place):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"job\.yaml: {place}") as told:
        config.load_yaml(tmp_path / "job.yaml")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("path", ["bytes.yaml", "a" * 5000, "\0"])
def test_what_is_no_text_or_no_path_is_an_error_that_names_it(tmp_path, path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read "):
        config.load_yaml(tmp_path / path)


@pytest.mark.parametrize("override", ["data=\udcff", "optim.name=s\ud800"])
def test_bytes_of_a_command_line_that_are_no_text_are_refused(recipe, override):
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        config.read(Job, recipe, [override])
    with pytest.raises(ConfigError, match="data: wanted UTF-8 text, got"):
        config.build(Job, {"data": "\udcff"})


def test_an_error_is_short_and_steers_no_terminal():
    with pytest.raises(ConfigError) as told:
        config.build(Job, {"\x1b[2J": 1})
    assert str(told.value).startswith("unknown key")
    assert "\x1b" not in str(told.value)
    with pytest.raises(ConfigError) as told:
        config.build(Job, {"epochs": ["x"] * 100_000})
    assert len(str(told.value)) < 5000


def test_yaml_comes_back_as_it_was_with_its_keys_in_order():
    tree = {"z": [1, 2.5, -1e-30, None, True], "a": {"pt [GeV]": "ünï: #code", "no": "no", "1": "1e-3"}, "m": []}
    text = config.dump_yaml(tree)
    assert config.parse_yaml(text, "text") == yaml.safe_load(text) == tree
    assert list(config.parse_yaml(text, "text")) == ["z", "a", "m"]
    assert "ünï" in text


def test_final_configuration_read_back_is_the_same(recipe):
    job = config.read(Job, recipe)
    assert config.build(Job, config.to_dict(job)) == job


def test_fingerprint_changes_with_a_value_but_not_with_an_ignored_one():
    one, two = Job(), Job(optim=Optim(lr=2.0))
    assert config.fingerprint(one) != config.fingerprint(two)
    assert config.fingerprint(one, ["optim.lr"]) == config.fingerprint(two, ["optim.lr"])


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Job().epochs = 4  # type: ignore[misc]


def test_a_job_turns_bad_input_into_one_line_and_exit_code_2(recipe, capsys):
    assert cli.run(lambda job: 0, Job, [str(recipe), "epoch=3"]) == 2
    assert capsys.readouterr().err == f"error: {recipe}: unknown key 'epoch'; nearest: epochs\n"


def test_help_lists_every_option_with_default_and_meaning(capsys):
    assert cli.run(lambda job: 1, Job, ["--help"], usage="What it does.") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("What it does.")
    assert all(word in shown for word in ("optim.lr", "learning rate", "[0.001]", "epochs", "edges [GeV]"))
