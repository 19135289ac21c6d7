"""Level 7: what a run says, as tables, plots and a page. A report is plain data; nothing here trains or measures a network."""
