from __future__ import annotations

from zos_cri.cli.table import print_table


def test_columns_are_as_wide_as_their_widest_cell(capsys):
    print_table(("A", "LONGER"), [("xxx", "y"), ("", "")])
    assert capsys.readouterr().out == "A    LONGER\nxxx  y\n\n"
    print_table(("A",), [])
    assert capsys.readouterr().out == "A\n"
