"""What can be set: one row a setting, and all else that knows of settings takes them from there.

    row.py       what a row says; what is wrong with a list of rows
    rows.py      the rows; limits.py has those of sizes and times
    readers.py   how a value is read, from a values file and from a variable
    ports.py     a range of ports, as a value
    devices.py   names of devices, as a value
    read.py      what a service's environment says

A lab takes the keys (lab/settings.py), services their variables (services/*/settings.py), a node's maps their sizes
(services/dataplane/shapes/sizes.py), and `make docs` writes docs/settings.md and the tables of docs/map-sizes.md.
Nothing here knows a service. docs/how-to-add-a-setting.md says what a new one needs.
"""
