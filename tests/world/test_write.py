from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prerank.errors import InputError
from prerank.log import Transforms, open_log
from prerank.world import World, WorldConfig, write_world


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_config: WorldConfig) -> Path:
    out = tmp_path_factory.mktemp("world") / "log"
    done: list[int] = []
    report = write_world(out, tiny_config, done.append)
    assert report.num_requests == sum(done) == tiny_config.num_requests
    assert report.num_items == tiny_config.num_items
    return out


def test_the_log_opens_with_its_parts_and_lineage(
    written: Path, flat: Any, tiny_config: WorldConfig
) -> None:
    log = open_log(written)
    assert set(log.parts) == {"train", "valid", "test"}
    for name, rows in flat.world.splits().items():
        assert log[name].num_requests == rows.size
    assert log.schema.lineage.made_by == "world"
    assert log.schema.lineage.seed == tiny_config.seed
    assert log.num_requests == tiny_config.num_requests


def test_truth_of_a_batch_read_back(written: Path, flat: Any) -> None:
    """From evidence (row, item) to the same utility, labels and stages as were generated."""
    log, world = open_log(written), World.open(written)
    transforms = Transforms.fit(log["train"])
    checked = 0
    for batch in log["test"].batches(transforms, batch_size=64):
        evidence, inputs = batch.evidence, batch.inputs
        row = evidence.row.numpy()[inputs.request_of.numpy()]
        raw = log.vocabulary("item").values.to_numpy(zero_copy_only=False)
        item = raw[evidence.item.numpy()].astype(np.int64)
        utility = world.utility(row, item)
        order = np.lexsort((item, row))
        own = np.isin(flat.request, np.unique(row))
        wanted = np.lexsort((flat["candidates.item"][own], flat.request[own]))
        np.testing.assert_array_equal(utility[order], flat.utility[own][wanted])
        np.testing.assert_array_equal(
            evidence.labels["click"].numpy()[order], flat["labels.click"][own][wanted]
        )
        names = np.array(log.schema.stages)[evidence.stage.numpy()]
        np.testing.assert_array_equal(names[order], flat["candidates.stage"][own][wanted])
        checked += row.size
    assert checked == np.isin(flat.request, flat.world.splits()["test"]).sum()


def test_items_keep_the_order_of_the_world(written: Path, flat: Any) -> None:
    log = open_log(written)
    raw = log.vocabulary("item").values.to_numpy(zero_copy_only=False)[2:]
    np.testing.assert_array_equal(raw.astype(np.int64), flat.world.item_ids)


def test_writing_twice_gives_the_same_log_id(
    written: Path, tmp_path: Path, tiny_config: WorldConfig
) -> None:
    write_world(tmp_path / "again", tiny_config)
    assert open_log(tmp_path / "again").schema.lineage == open_log(written).schema.lineage


def test_an_existing_log_is_not_overwritten(written: Path, tiny_config: WorldConfig) -> None:
    with pytest.raises(InputError):
        write_world(written, tiny_config)
