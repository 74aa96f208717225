"""The `plexus` command. Start at `__main__.py`: the table of commands, and what happens to errors.

`session.py` finds the lab and connects; `output.py` sets tables, JSON and YAML; `state.py` reads what the services say.
Each command is a module of its own, imported only when it is asked for. Commands hold no truth and cache nothing:
they ask over the bus, show, and end. Exit status: 0 done, 1 refused or failed, 2 usage, 130 interrupted.
"""
