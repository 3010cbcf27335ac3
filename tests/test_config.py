"""DATA/config.toml: what is written can be read, edited by hand, and is reported precisely when it is wrong."""

import dataclasses
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer import config
from syncer.config import Config
from syncer.errors import ConfigInvalid

SIMPLE = Config(remote="nas:blobs", budget_bytes=100_000_000)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), min_size=1)


@given(
    st.builds(
        Config,
        remote=TEXTS,
        budget_bytes=st.integers(64_000_000, 2**50),
        password_file=st.none() | TEXTS,
        snapshot_interval_s=st.floats(1, 1e9),
        upload_delay_s=st.floats(0, 1e9),
        network_deadline_s=st.floats(1, 1e9),
        upload_parallelism=st.integers(1, 64),
        read_ahead_bytes=st.integers(0, 2**40),
        compression_level=st.integers(1, 19),
        log_level=st.sampled_from(config.LOG_LEVELS),
        mount_options=st.lists(st.sampled_from(config.MOUNT_OPTIONS)).map(tuple),
    )
)
def test_what_was_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, settings: Config) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    config.save(path, settings)
    assert config.load(path) == settings
    config.save(path, SIMPLE)
    assert config.load(path) == SIMPLE


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config.save(path, SIMPLE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_the_file_explains_every_key(tmp_path: Path) -> None:
    lines = config.render(SIMPLE).splitlines()
    for field in dataclasses.fields(Config):
        at = next(i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{field.name} = "))
        assert lines[at - 1].startswith("# "), field.name


def test_saving_keeps_what_the_user_wrote(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# my own words\nremote = 'nas:blobs'  # at home\nbudget_bytes = 100_000_000\n")
    config.save(path, dataclasses.replace(SIMPLE, budget_bytes=200_000_000, log_level="DEBUG"))
    assert path.read_text() == (
        "# my own words\nremote = 'nas:blobs'  # at home\nbudget_bytes = 200000000\n\nlog_level = \"DEBUG\"\n"
    )


def test_saving_over_a_form_that_cannot_be_amended_still_says_the_right_thing(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('remote = "a"\nbudget_bytes = 100000000\nmount_options = [\n  "noatime",\n  "nodev",\n]\n')
    wanted = dataclasses.replace(SIMPLE, mount_options=("nodev",))
    config.save(path, wanted)
    assert config.load(path) == wanted


def test_leaving_out_all_but_remote_and_budget_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('remote = "nas:blobs"\nbudget_bytes = 100000000\n')
    assert config.load(path) == SIMPLE


@pytest.mark.parametrize(
    ("text", "place", "says", "hint"),
    [
        ("remote = 'a'\nbudget_bytes = 100000000\nbugdet = 3\n", ":3: ", "unknown key 'bugdet'", "budget_bytes"),
        ("remote = 'a'\n\nbudget_bytes = '1 GB'\n", ":3: ", "budget_bytes must be a whole number", "correct or delete"),
        ("remote = 'a'\nbudget_bytes = 63999999\n", ":2: ", "at least 64000000", "correct or delete"),
        ("remote = 'a'\nbudget_bytes = true\n", ":2: ", "not True", "correct or delete"),
        ("remote = ''\nbudget_bytes = 100000000\n", ":1: ", "remote must be", "correct or delete"),
        ("remote = 'a'\nbudget_bytes = 100000000\nsnapshot_interval_s = nan\n", ":3: ", "not nan", "correct"),
        ("remote = 'a'\nbudget_bytes = 100000000\nupload_delay_s = -1\n", ":3: ", "at least 0", "correct"),
        ("remote = 'a'\nbudget_bytes = 100000000\nupload_parallelism = 65\n", ":3: ", "from 1 to 64", "correct"),
        ("remote = 'a'\nbudget_bytes = 100000000\nlog_level = 'loud'\n", ":3: ", "one of DEBUG", "correct"),
        ("remote = 'a'\nbudget_bytes = 100000000\nmount_options = ['a,b']\n", ":3: ", "a list of", "correct"),
        ("remote = 'a'\nbudget_bytes = 100000000\n[cache]\nsize = 1\n", ":3: ", "unknown key 'cache'", "delete it"),
        ("remote = 'a'\nbudget_bytes = \n", "", "line 2", "correct that line"),
        ("remote = 'a'\n", "", "budget_bytes is missing", "add it: budget_bytes = 1000000000"),
        ("budget_bytes = 100000000\n", "", "remote is missing", "add it: remote = "),
    ],
)
def test_a_mistake_is_named_with_its_place_and_remedy(
    tmp_path: Path, text: str, place: str, says: str, hint: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}{place}")
    assert says in str(caught.value)
    assert hint in caught.value.hint


def test_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with pytest.raises(ConfigInvalid, match="does not exist"):
        config.load(path)
    path.write_bytes(b"remote = '\xff'\n")
    with pytest.raises(ConfigInvalid, match="not UTF-8"):
        config.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigInvalid, match="cannot be read: Is a directory"):
        config.load(path)


def test_a_remote_that_is_no_text_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config.save(path, SIMPLE)
    with pytest.raises(ConfigInvalid, match="UTF-8"):
        config.save(path, dataclasses.replace(SIMPLE, remote="/blobs\udcff"))
    assert config.load(path) == SIMPLE
