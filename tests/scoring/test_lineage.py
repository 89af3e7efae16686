"""Who taught whom, read from what judges record; no judge is loaded for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewardlm.config import MeasureSettings, RlafSettings, StageMeasure
from rewardlm.data.dialogues import normalised
from rewardlm.data.prompts import load_prompts
from rewardlm.scoring.lineage import Lineage, count_read, kinship, lineage_of, members, read_hashes, write_hashes
from rewardlm.scoring.record import judge_folder


def planted(
    folder: Path, texts: list[str] | None, *, encoder: str = "some/encoder", distilled: Any = (), teacher: Any = None
) -> Path:
    """A judge's folder as far as its lineage is read: weights that differ from all others, judge.json, its texts."""
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(str(folder).encode())
    record: dict[str, Any] = {"labels": ["toxicity"], "encoder": encoder, "data": [{"kind": folder.name}]}
    record |= {"distilled": list(distilled), "teacher": teacher}
    (folder / "judge.json").write_text(json.dumps(record))
    if texts is not None:
        write_hashes(folder, texts)
    return folder


def entry(folder: Path, **more: Any) -> dict[str, Any]:
    """What a judge that ``folder`` taught records of it."""
    own = json.loads((folder / "judge.json").read_text())
    revision = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    return {"judge": folder.name, "label": "toxicity", "revision": f"{revision}@abc", "known": True, **own, **more}


def test_a_chain_of_teachers_is_found_from_either_end(tmp_path: Path) -> None:
    a = planted(tmp_path / "a", ["one"], encoder="of/a")
    b = planted(tmp_path / "b", ["two"], encoder="of/b", distilled=[entry(a)])
    c = planted(tmp_path / "c", ["three"], encoder="of/c", teacher=entry(b))
    stranger = planted(tmp_path / "stranger", ["four"])
    of = {folder.name: lineage_of(str(folder)) for folder in (a, b, c, stranger)}
    assert of["c"].encoders == ("of/c", "of/b", "of/a")
    assert of["c"].data == ("c", "b", "a")
    assert kinship(of["a"], of["b"]) == f"{a} taught b"
    assert kinship(of["a"], of["c"]) == f"{a} taught b"  # over two steps
    assert kinship(of["c"], of["a"]) == f"{a} taught b"
    assert kinship(of["c"], of["b"]) == f"{b} taught c"
    assert kinship(of["b"], of["stranger"]) is kinship(of["stranger"], of["c"]) is None
    assert all(lineage.known for lineage in of.values())


def test_two_pupils_of_one_teacher_are_related(tmp_path: Path) -> None:
    teacher = {"judge": "lexical2", "label": "toxicity", "revision": "tox_block==0.1.2", "known": True, "data": []}
    one = planted(tmp_path / "one", ["x"], teacher=teacher)
    two = planted(tmp_path / "two", ["y"], distilled=[teacher])
    assert kinship(lineage_of(str(one)), lineage_of(str(two))) == "lexical2 taught both: one and two"
    assert kinship(lineage_of("lexical2"), lineage_of(str(one))) == "lexical2 taught one"
    assert kinship(lineage_of("lexical"), lineage_of(str(one))) is None


def test_one_folders_name_is_no_evidence_but_its_weights_are(tmp_path: Path) -> None:
    """Two judges called "toxicity" are two judges; one that was copied is one."""
    first, second = planted(tmp_path / "x" / "toxicity", ["a"]), planted(tmp_path / "y" / "toxicity", ["b"])
    pupil = planted(tmp_path / "pupil", ["c"], distilled=[entry(first)])
    assert kinship(lineage_of(str(second)), lineage_of(str(pupil))) is None
    copy = tmp_path / "copy"
    first.rename(copy)
    assert kinship(lineage_of(str(copy)), lineage_of(str(pupil))) == f"{copy} taught pupil"


def test_ensembles_labels_and_presets_have_the_lineages_of_their_members(tmp_path: Path) -> None:
    a = planted(tmp_path / "a", ["one", "both"])
    b = planted(tmp_path / "b", ["two", "both"], distilled=[entry(a)])
    assert kinship(lineage_of(f"mean(lexical,{a}#toxicity)"), lineage_of(str(b))) == f"{a} taught b"
    ensemble = lineage_of(f"max({a},{b}#toxicity)")
    assert ensemble.known
    assert count_read(ensemble, ["one", "two", "both", "three"]) == 3
    assert members("toxicity+hate") == {"starter"}
    assert kinship(lineage_of("toxicity+hate"), lineage_of("starter#hate")) == "both are starter"


def test_what_was_read_is_counted_by_normalised_text_through_all_teachers(tmp_path: Path) -> None:
    a = planted(tmp_path / "a", ["a text"])
    b = tmp_path / "b"
    planted(b, None, distilled=[entry(a)])
    numbers = read_hashes(a)
    assert numbers is not None
    assert write_hashes(b, ["another", "a text"], [numbers]) == 2
    wanted = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in ("a text", "another")]
    stored = read_hashes(b)
    assert stored is not None
    assert stored.dtype == np.uint64
    assert stored.tolist() == sorted(wanted)
    asked = [normalised(text) for text in (" A  TEXT", "a text", "Another", "else")]
    assert count_read(lineage_of(str(b)), asked) == 2  # different texts
    assert count_read(lineage_of(str(a)), asked) == 1


def test_a_judge_without_a_record_is_unknown(tmp_path: Path) -> None:
    """Of older versions, or with a teacher of one; neither is what another program made in a folder."""
    older = planted(tmp_path / "older", None)
    pupil = planted(tmp_path / "pupil", ["x"], distilled=[entry(older, known=False)])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in (str(older), str(pupil), str(foreign), "module:function", f"mean(lexical,{older})"):
        assert not lineage_of(name).known, name
    assert count_read(lineage_of(str(older)), ["x"]) is None
    assert lineage_of("lexical").known
    assert lineage_of("perspective").known
    assert count_read(lineage_of("lexical"), ["x"]) is None


def test_a_run_can_store_it(tmp_path: Path) -> None:
    b = planted(tmp_path / "b", ["x"], distilled=[entry(planted(tmp_path / "a", ["y"]))])
    lineage = lineage_of(str(b))
    assert Lineage.of_dict(str(b), json.loads(json.dumps(lineage.to_dict()))) == lineage
    assert not Lineage.of_dict("b", None).known


SHIPPED = [name for name in ("starter", "witness") if judge_folder(name) is not None]


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_judge_read_a_prompt_that_is_measured(name: str) -> None:
    lineage = lineage_of(name)
    assert lineage.known
    for source in ("starter", "rtp:packaged"):
        prompts = [normalised(prompt.text) for prompt in load_prompts(source, part="measure").prompts]
        assert count_read(lineage, prompts) == 0, source


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_judge_read_a_prompt_of_the_measuring_half(name: str, shared_data: Path) -> None:
    """make prove-rlaf measures on these; of the other half a judge has read some, or the count would be empty."""
    source = str(shared_data / "realtoxicityprompts" / "prompts.jsonl")
    halves = {
        part: [normalised(prompt.text) for prompt in load_prompts(source, part=part).prompts]
        for part in ("measure", "train")
    }
    assert count_read(lineage_of(name), halves["measure"]) == 0
    assert count_read(lineage_of(name), halves["train"]) > 200  # type: ignore[operator]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_list_of_what_was_read_is_small(name: str) -> None:
    folder = judge_folder(name)
    assert folder is not None
    assert (folder / "read.safetensors").stat().st_size <= 300_000


def test_witness_shares_no_text_teacher_or_encoder_with_starter() -> None:
    witness, starter = lineage_of("witness"), lineage_of("starter")
    assert witness.known
    assert starter.known
    assert kinship(witness, starter) is None
    assert not {one.revision for one in witness.family} & {one.revision for one in starter.family}
    assert not set(witness.encoders) & set(starter.encoders)
    read = [read_hashes(folder) for lineage in (witness, starter) for folder in lineage.folders]
    assert len(np.intersect1d(*read)) == 0  # type: ignore[arg-type]
    assert not {"exchanges", "arguments", "contrasts", "starter"} & set(witness.data)


@pytest.mark.parametrize("third", ["lexical", "lexical2"])
@pytest.mark.parametrize("name", ["starter", "witness"])
def test_no_third_party_taught_a_shipped_judge(name: str, third: str) -> None:
    assert kinship(lineage_of(third), lineage_of(name)) is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("starter", "starter taught starter-large"),
        ("starter#hate", "starter taught starter-large"),
        ("lexical2", "lexical2 taught starter-large"),
        ("starter-large#hate", "both are starter-large"),
        ("witness", None),
        ("lexical", None),
    ],
)
def test_whose_witness_starter_large_can_be(other: str, said: str | None) -> None:
    found = kinship(lineage_of(other), lineage_of("starter-large"))
    assert found is None if said is None else found is not None and found.startswith(said)
    if other == "witness":
        read = [read_hashes(judge_folder(name)) for name in ("witness", "starter-large")]  # type: ignore[arg-type]
        assert len(np.intersect1d(*read)) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [MeasureSettings, StageMeasure])
def test_by_default_a_judge_measures_that_is_no_relative_of_the_default_reward(settings: Any) -> None:
    measuring = settings.model_fields["scorer"].default
    rewards = [lineage_of(name) for name in RlafSettings.model_fields["reward"].default]
    independent = [name for name in measuring if not any(kinship(lineage_of(name), reward) for reward in rewards)]
    assert "witness" in independent
    assert all(lineage_of(name).known for name in independent)
