"""The tables: what stands in the cells, and the paper's figures against sums over its own tables."""

from facedepth_jax import tables
from facedepth_jax.data.pairs import ANGLE_SUBSETS, SEQUENCE_SUBSETS
from facedepth_jax.metrics import METRICS


def rows(markdown):
    """label -> cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    assert len({len(line) for line in lines}) == 1, "a ragged table"
    return {line[0]: line[1:] for line in lines}


def test_best_in_bold_and_arrows():
    better = {"l1": 1.0, "delta_1.25": 0.9}
    worse = {"l1": 2.0, "delta_1.25": 0.8}
    found = rows(tables.markdown_table({"cgan": better, "ae": worse}, "n = 12"))
    assert found["n = 12"] == ["cgan", "ae"]
    assert found["L1 norm ↓"] == ["**1.000**", "2.000"] and found["δ < 1.25 ↑"] == ["**0.9000**", "0.8000"]


def test_a_tie_is_bold_twice_and_a_lone_column_never():
    assert rows(tables.markdown_table({"a": {"l1": 1.0}, "b": {"l1": 1.0}}, "n = 1"))["L1 norm ↓"] == ["**1.000**"] * 2
    assert "**" not in tables.markdown_table({"a": {"l1": 1.0}}, "n = 1")


def test_seeds_are_mean_and_deviation():
    found = rows(tables.markdown_table({"a": {"l1": [1.0, 2.0, 3.0]}, "b": {"l1": [5.0]}}, "n = 1"))
    assert found["L1 norm ↓"] == ["**2.000 ± 1.000**", "5.000"]


def test_how_far_the_baseline_is():
    columns = {"ours": {"l1": 3.0, "l2": 1.0}, "mean map": {"l1": 4.0, "l2": 0.0}}
    found = rows(tables.markdown_table(columns, "n = 1", {"ours": "mean map"}))
    assert found["L1 norm ↓"] == ["**3.000** (-25%)", "4.000"]
    assert found["L2 norm ↓"] == ["1.0", "**0.0**"]  # no share of nothing


def test_each_column_has_a_baseline_of_its_own():
    columns = {name: {"l1": l1} for name, l1 in {"a": 3.0, "b": 1.0, "mean": 4.0, "near mean": 2.0}.items()}
    found = rows(tables.markdown_table(columns, "n = 1", {"a": "mean", "b": "near mean"}))
    assert found["L1 norm ↓"] == ["3.000 (-25%)", "**1.000** (-50%)", "4.000", "2.000"]


def test_what_a_column_has_not_is_a_dash_and_the_papers_figures_do_not_compete():
    columns = {"ours": {"l1": 3.0, "face_verification": [0.7]}, "mean map": {"l1": 4.0}}
    found = rows(tables.markdown_table(columns, "n = 1", {"ours": "mean map"}, {"paper: cgan": {"l1": 1.0}}))
    assert found["L1 norm ↓"] == ["**3.000** (-25%)", "4.000", "1.000"]
    assert found["Face verification ↑"] == ["0.7000", "-", "-"]
    assert "RMSE lin ↓" not in found


def cells(accuracy, n):
    return {a: {s: {"accuracy": accuracy, "n": n} for s in SEQUENCE_SUBSETS} for a in ANGLE_SUBSETS}


def test_verification_table():
    original, generated = cells(0.8, 100), [cells(0.6, 100), cells(0.7, 100)]
    original["A2"]["S4-S5"] = {"accuracy": None, "n": 0}
    found = rows(tables.verification_table(original, generated, "cgan"))
    assert found["cgan"] == ["S1-S3", "S4-S5", "S1-S5"]
    assert found["A1"] == ["0.8000 / 0.6500 ± 0.0707 (100)"] * 3
    assert found["A2"][1] == "-"
    assert rows(tables.verification_table(original, [], "alone"))["A1+A2"] == ["0.8000 (100)"] * 3


def test_both_lists_of_pairs_and_how_far_the_first_row_is():
    """Two replicates each; of two seeds the mean counts, in each replicate too."""

    def figures(accuracy, *replicates):
        both = {"accuracy": accuracy, "auc": accuracy + 0.1}
        return both | {"replicates": {name: [x + value - accuracy for x in replicates] for name, value in both.items()}}

    one, other, bound = figures(0.6, 0.5, 0.7), figures(0.8, 0.8, 0.8), figures(0.9, 1.0, 0.8)
    columns = {
        title: [{name: {"n": 12, "n_people": 4} | seed for name in tables.LISTS} for seed in seeds]
        for title, seeds in {"cgan": [one, other], "bound": [bound]}.items()
    }
    columns["cgan"][1]["test"]["auc"] = 1.1
    accuracy, auc = tables.lists_tables(columns).split("\n\n")
    found = rows(accuracy)
    caption = "accuracy, n = 12 validation pairs of 4 people and 12 test pairs of 4 people"
    assert found[caption] == list(tables.LISTS.values())
    assert found["cgan"] == ["0.700 ± 0.071"] * 4  # 0.65 and 0.75
    assert found["bound"] == ["0.900 ± 0.141 (+0.200 ± 0.212)"] * 4  # 0.35 and 0.05
    assert rows(auc)["cgan"] == [*["0.800 ± 0.071"] * 2, "0.900 ± 0.071", "0.800 ± 0.071"]
    for maps in (columns["cgan"][0], columns["cgan"][1], columns["bound"][0]):
        maps["test"] = maps["test"] | {"auc": None}
        maps["validation"] = maps["validation"] | {"replicates": {"accuracy": None, "auc": None}}  # few people
    accuracy, auc = tables.lists_tables(columns).split("\n\n")
    assert rows(auc)["bound"][2] == "-" and rows(accuracy)["bound"][0] == "0.900"
    assert rows(accuracy)["cgan"][:2] == ["0.700", "0.700 ± 0.071"]


def test_the_papers_figures_fit_together():
    """Each union in Table 2 lies between its parts; the method's own Table 1 figure is Table 2's corner."""
    table1, table2 = tables.paper()["table1"], tables.paper()["table2"]
    for kind in (0, 1):
        for sequences in SEQUENCE_SUBSETS:
            parts = [table2[angles][sequences][kind] for angles in ("A1", "A2")]
            assert min(parts) < table2["A1+A2"][sequences][kind] < max(parts)
        for angles in ANGLE_SUBSETS:
            parts = [table2[angles][sequences][kind] for sequences in ("S1-S3", "S4-S5")]
            assert min(parts) < table2[angles]["S1-S5"][kind] < max(parts)
    assert table1["pandora"]["cgan"]["face_verification"] == table2["A1+A2"]["S1-S5"][1] == 0.7247
    keys = {metric.key for metric in (*METRICS, tables.FACE_VERIFICATION)}
    for methods in (table1["pandora"], table1["biwi"]):
        assert set(methods) == {"cgan", "ae", "pix2pix", "cui"}
        for values in methods.values():
            assert set(values) == keys
            deltas = [values[f"delta_1.25{power}"] for power in ("^(1/4)", "^(1/3)", "^(1/2)", "", "^2", "^3")]
            assert deltas == sorted(deltas) and values["l2"] < 96 * values["rmse_lin"] + 0.05
    assert {m.key: m.better for m in (*METRICS, tables.FACE_VERIFICATION)} == table1["better"]


def test_the_papers_table_2():
    found = rows(tables.paper_verification_table())
    assert found["A2"] == ["0.7928 / 0.7499", "0.7216 / 0.6586", "0.7576 / 0.7007"]


def test_a_standard_error_stands_where_there_is_one_value():
    columns = {"cgan": {"l1": 1.0, "l2": 4.0}, "seeds": {"l1": [2.0, 4.0], "l2": [5.0, 5.0]}, "old": {"l1": 3.0}}
    errors = {"cgan": {"l1": 0.25, "l2": None}, "seeds": {"l1": 9.0}}
    found = rows(tables.markdown_table(columns, "n = 1", dict.fromkeys(columns, "old"), errors=errors))
    assert found["L1 norm ↓"] == ["**1.000 ± 0.250** (-67%)", "3.000 ± 1.414 (+0%)", "3.000"]
    assert found["L2 norm ↓"] == ["**4.0**", "5.0 ± 0.0", "-"]
