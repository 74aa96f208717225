"""Who may speak to whom.

- `expansion`    the map `policy`: for each identity that has pods here, all that holds for it
- `store`        rules and selectors as heard, and whom each concerns
- `entries`      from rules and selectors to entries, and the twin of what the programs do with them
- `naming`       the map `named_ports`, kept; `named_ports`: where entries for named ports hold
"""
