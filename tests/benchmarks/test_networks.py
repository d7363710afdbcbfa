# SPDX-License-Identifier: Apache-2.0
"""The comparison of networks: rates, ranks and tables, from numbers that are made up."""

import pytest

from graft.benchmarks import networks


def test_rates_are_climbed_to_the_one_that_is_worth_most_and_both_neighbours_are_tried():
    asked = []

    def worth(rate):
        asked.append(rate)
        return -abs(rate - 0.001)

    assert networks.climb(0.03, worth) == 0.001
    assert sorted(asked) == [0.0003, 0.001, 0.003, 0.01, 0.03]
    assert len(asked) == len(set(asked))


def test_neighbours_are_1_3_10_30():
    rate, found = 1e-5, []
    for _ in range(6):
        rate = networks.neighbours(rate)[1]
        found.append(rate)
    assert found == [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    assert all(networks.neighbours(rate)[0] < rate for rate in found)


def test_the_tables_have_every_variant_that_was_measured():
    def case(one, two):
        return {"300": {"concept": one, "kept": 0.9}, "600": {"concept": two, "kept": 0.8}}

    known = {f"rate lora {rate:g}": {"concept": 1 - rate, "kept": 1.0} for rate in (1e-3, 3e-3)}
    known["rate lora 0.01"] = {"concept": 0.1, "kept": 1.0}
    known["rate lora 0.003"] = {"concept": 1.0, "kept": 1.0}
    known |= {"size lora rank": {"rank": 8, "parameters": 12345}, "word ti 0": case(0.1, 0.2)}
    known |= {"run lora rank 0": case(0.5, 0.7), "run lora rank 2": case(0.7, 0.7)}
    lines = networks.tables(known)
    assert lines[2] == (
        "| LoRA | rank | 8 | 12,345 | 0.003 | 60% ± 14% | 90% ± 0% | 70% ± 0% | 80% ± 0% | 2 |"
    )
    assert lines[-2] == "| textual inversion alone | 10% | 90% | 20% | 80% | 1 |"
    assert lines[-1].startswith("| LoRA alone | 60% ± 14% |")


@pytest.mark.comfy
def test_equal_counts_are_near_and_what_has_one_size_is_compared_once(comfy):
    from graft.adapters import NETWORKS
    from graft.host.model.mini import load_mini

    model = load_mini()[0]
    aim = networks.parameters(model, networks.network(networks.LORA, networks.RANK))
    assert aim == networks.parameters(model, networks.network("rslora", networks.RANK))
    assert networks.parameters(model, networks.network("b-lora", networks.RANK)) < aim / 4
    for name, variant in networks.VARIANTS.items():
        if variant.kind in NETWORKS.names():
            fields = NETWORKS.get(variant.kind).__dataclass_fields__
            assert ("rank" in fields) or variant.sizes == (networks.BY_RANK,), name
