"""report/removal.py: curves from metrics, a sheet, a picture."""

from pathlib import Path

from fedemb.report.removal import draw_removal, removal_curves, removal_sheet

MODELS = {
    "federated": {"macro_ap_without_50": 0.4, "macro_ap": 0.6, "micro_ap": 0.9},
    "zero_fill": {"validation_macro_ap": 0.5, "validation_macro_ap_without_20": 0.3},
    "popularity": {"mrr": 0.1},
}


def test_curves_sheet_and_picture(tmp_path: Path) -> None:
    curves = removal_curves(MODELS)
    assert curves == {"federated": {0: 0.6, 50: 0.4}, "zero_fill": {0: 0.5, 20: 0.3}}
    sheet = removal_sheet(curves)
    assert sheet.header == ("macro AP, parts removed", "0 %", "20 %", "50 %")
    assert [cell.text for cell in sheet.rows[0][1]] == ["0.6000", "–", "0.4000"]
    draw_removal(curves, {"federated": "#0072b2"}, tmp_path / "removal.png")
    assert (tmp_path / "removal.png").stat().st_size > 1000
