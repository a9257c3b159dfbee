"""`data=`: one option per kind of data, with a source where one is named, and the names that the domains get."""

import logging

import pytest
from omegaconf import OmegaConf

from tests.helpers import compose
from tlexp.config.load import CONF, load, renamed
from tlexp.errors import UsageError

OLD = [file.stem for file in sorted((CONF / "data").glob("*.yaml")) if file.read_text().startswith("# Old name")]


@pytest.mark.parametrize("kind", ["images", "image_table", "text_table"])
def test_a_location_makes_a_source(kind, tmp_path):
    options = (f"data={kind}", "data.target.root=photos")
    alone = compose(*options, "init=random", root=tmp_path)
    assert alone.data.source is None
    both = compose(*options, "data.source.root=paintings", root=tmp_path)
    assert both.data.source is not None
    assert both.data.source["root"] == str(tmp_path / "paintings")
    assert both.data.source["_target_"] == both.data.target["_target_"]
    assert (both.data.source["name"], both.data.target["name"]) == ("paintings", "photos")


def test_a_name_makes_a_source():
    alone = compose("data=named", "dataset@data.target=digits", "init=random")
    assert alone.data.source is None
    for kind in (["data=named", "dataset@data.target=digits"], ["data=images", "data.target.root=photos"]):
        both = compose(*kind, "dataset@data.source=mnist")
        assert both.data.source is not None
        assert both.data.source["name"] == "mnist"
    hub = compose("data=named", "dataset@data.target=digits", "dataset@data.source=hf", "data.source.hub=org/notes")
    assert hub.data.source is not None
    assert hub.data.source["name"] == "notes"


def test_what_needs_a_source_says_how_to_name_one():
    remedy = "data=images has no source; give data.source.root= or dataset@data.source=, or use alpha=0"
    with pytest.raises(UsageError, match=remedy):
        compose("data=images", "data.target.root=photos", "init=random", "alpha=0.5")


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_goes_on_for_a_version_with_a_notice(old, caplog):
    chosen = [f"data={old}", "data.target.root=photos", "init=random"]
    if old in ("one", "pair"):
        chosen = [f"data={old}", "dataset@data.target=digits", "init=random"]
    renamed.cache_clear()
    with caplog.at_level(logging.WARNING):
        config = compose(*chosen)
        compose(*chosen)
    new = config.data.name
    assert new in ("images", "image_table", "text_table", "named")
    assert compose(f"data={new}", *chosen[1:]) == config
    assert caplog.messages == [f"data={old} is now called data={new}; the next version will not know the old name"]


def test_every_old_name_is_there():
    assert OLD == ["folder", "folders", "image_tables", "one", "pair", "table", "tables"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["data.target.root=art/train", "data.source.root=photo/train"], ["train", "photo-train"]),
        (["data.target.root=a/x/train", "data.source.root=b/x/train"], ["train", "b-x-train"]),
        (["data.target.root=photos", "data.source.root=photos"], ["photos", "photos-source"]),
        (["data.target.root=a/photos", "data.source.root=photos"], ["photos", None]),
        (["data.target.root=photos.v1", "data.source.root=photos.v2"], ["photos.v1", "photos.v2"]),
        (["data.target.root=x/../photos", "data.source.root=photos"], ["photos", "photos-source"]),
        (["data.target.root=photos", "data.source.root=art", "data.source.name=mine"], ["photos", "mine"]),
    ],
)
def test_source_and_target_never_have_one_name(options, names, tmp_path):
    config = compose("data=images", *options, root=tmp_path)
    assert config.data.source is not None
    assert [config.data.target["name"], config.data.source["name"]] == [names[0], names[1] or f"{tmp_path.name}-photos"]
    saved = OmegaConf.create(config.redacted())
    assert load(saved, tmp_path).hash == config.hash, "a resumed run has the names it had"


def test_a_data_set_that_is_target_source_and_shifted_has_three_names():
    roles = [f"dataset@data.{role}=digits" for role in ("target", "source")]
    config = compose("data=named", *roles, "+dataset@data.shifted=digits", "data.source.rotation=90")
    assert config.data.source is not None
    assert config.data.shifted is not None
    found = [node["name"] for node in (config.data.target, config.data.source, config.data.shifted)]
    assert found == ["digits", "digits-source", "digits-shifted"]


def test_three_folders_of_one_name_have_three_names(tmp_path):
    roots = ("data.target.root=d/a/photos", "data.source.root=d/b/photos", "data.shifted.root=e/b/photos")
    config = compose("data=images", "+dataset@data.shifted=image_folder", *roots, root=tmp_path)
    assert config.data.source is not None
    assert config.data.shifted is not None
    found = [node["name"] for node in (config.data.target, config.data.source, config.data.shifted)]
    assert found == ["photos", "b-photos", "e-b-photos"]


def test_an_option_of_a_source_that_is_not_there_is_a_mistake():
    with pytest.raises(UsageError, match=r"data\.source\.classes=.*there is no source; give data\.source\.root="):
        compose("data=images", "data.target.root=photos", "data.source.classes=[a,b]", "init=random")
    with pytest.raises(UsageError, match="choose an option first, such as dataset@data"):
        compose("data=named", "dataset@data.target=digits", "data.source.root=photos")


def test_tables_of_one_folder_are_named_by_their_files(tmp_path):
    options = ["data=text_table", "data.target.root=text", "data.source.root=text", "init=random"]
    config = compose(*options, "data.target.train=reviews.csv", "data.source.train=notes.csv", root=tmp_path)
    assert (config.data.target["name"], config.data.source["name"]) == ("text", "text-notes")
    same = compose(*options, "data.target.train=reviews.csv", "data.source.train=reviews.csv", root=tmp_path)
    assert same.data.source["name"] == "text-reviews"
